"""What each part of tempered fine-tuning does: the option temperature, refitting it, the averaged weights.

    python benchmarks/tempered_parts.py --part world-facts|arc|obqa [--data DIR] [--quick] [--seeds S …] [--minutes M]

The runs of `transfer.py`, asked about the kind of question they were trained on: 400 training questions of
`world-facts`, ARC-Easy or OpenBookQA, three epochs, scored on 800, 800 and 500 test questions. "tempered" is plain
fine-tuning with both settings of `tempered`, "refit" also fits T anew while the first epoch passes, and on
`world-facts` each part also stands by itself. Each is shown with a temperature from 300 calibration questions, too.

Nothing is chosen on test questions. What T is refitted on was settled on the calibration questions, with seed 100.

Minutes are of two processes on two cores, a seed: 15 for `world-facts`, 15 for `arc` and for `obqa`; `--minutes 45`
makes parts of less than an hour. Tables and a picture go to `benchmarks/results/tempered-parts-PART.json`, and beside.
"""

from __future__ import annotations

import common
import transfer

PARTS = ("world-facts", "arc", "obqa")
T, REFIT, AVERAGE = {"option_temperature": 0.0}, {"option_temperature_refit": True}, {"average_weights": 1.0}
MAIN = {"sft": {}, "tempered": {**T, **AVERAGE}, "tempered-refit": {**T, **REFIT, **AVERAGE}}
ALONE = {"temperature-only": T, "refit-only": {**T, **REFIT}, "average-only": AVERAGE}


def main() -> None:
    arguments, folder = common.parse(__doc__, "tempered_parts", parts=PARTS, add=transfer.add_arguments)
    settings = common.settings_for(arguments, transfer.SETTINGS, transfer.QUICK)
    tests = dict.fromkeys(transfer.TESTS, transfer.QUICK_TEST) if arguments.quick else transfer.TESTS
    for part in [arguments.part] if arguments.part else PARTS:
        how = settings if part == "world-facts" else {**settings, "reduction": "mean"}
        data = transfer.load(part, how, tests, arguments.data)
        home = data["test"][0].group
        data["test"] = [question for question in data["test"] if question.group == home]
        rows = {**MAIN, **ALONE} if part == "world-facts" else MAIN
        methods = {name: ("SFT", fields) for name, fields in rows.items()}
        transfer.run_part(f"tempered-parts-{part}", how, folder, data, arguments, methods)


if __name__ == "__main__":
    main()
