"""What each part of tempered fine-tuning does: the option temperature, refitting it, the averaged weights.

    python benchmarks/tempered_parts.py --part world-facts|arc|obqa [--data DIR] [--quick] [--seeds S …] [--minutes M]

The runs and the test questions of `transfer.py`, with other rows: "tempered" has T fixed before the first step, "refit"
fits it anew while the first epoch passes, as is the default now. On `world-facts` "last half" averages the weights over
the last half of the steps, and "only" is a part by itself. Each is shown with a temperature from 300 calibration
questions, too.

Nothing is chosen on test questions. What T is refitted on was settled on the calibration questions, with seed 100, and
that it is the default on those of seeds 0, 1 and 100.

Minutes are of two processes on two cores, a seed: 16 for `world-facts`, 19 for `arc`, 15 for `obqa`; `--minutes 45`
makes parts of less than an hour. Tables and a picture go to `benchmarks/results/tempered-parts-PART.json`, and beside.
"""

from __future__ import annotations

import common
import transfer

BASELINES = ("sft", "sft + temperature", "tempered", "tempered-refit")
PARTS = ("world-facts", "arc", "obqa")
T, REFIT, AVERAGE = {"option_temperature": 0.0}, {"option_temperature_refit": True}, {"average_weights": 1.0}
MAIN = {"sft": {}, "tempered": {**T, **AVERAGE}, "tempered-refit": {**T, **REFIT, **AVERAGE}}
ALONE = {
    "tempered-refit-last-half": {**T, **REFIT, "average_weights": 0.5},
    "temperature-only": T,
    "refit-only": {**T, **REFIT},
    "average-only": AVERAGE,
}


def main() -> None:
    arguments, folder = common.parse(__doc__, "tempered_parts", parts=PARTS, add=transfer.add_arguments)
    settings = common.settings_for(arguments, transfer.SETTINGS, transfer.QUICK)
    tests = dict.fromkeys(transfer.TESTS, transfer.QUICK_TEST) if arguments.quick else transfer.TESTS
    for part in [arguments.part] if arguments.part else PARTS:
        how = settings if part == "world-facts" else {**settings, "reduction": "mean"}
        data = transfer.load(part, how, tests, arguments.data)
        rows = {**MAIN, **ALONE} if part == "world-facts" else MAIN
        methods = {name: ("SFT", fields) for name, fields in rows.items()}
        transfer.run_part(f"tempered-parts-{part}", how, folder, data, arguments, methods, BASELINES)


if __name__ == "__main__":
    main()
