"""A second family of models, answering by letters: `world-facts` and OpenBookQA, in-domain.

    python benchmarks/second_family.py --model FILE.gguf [--part world-facts|openbookqa] [--data DIR] [--quick]
        [--output DIR] [--seeds S …] [--minutes M]

The model is meant to be Qwen2.5-Coder-0.5B-Instruct as a GGUF file, family qwen2; any other that `caltune` loads will
do. Options stand in the prompt under letters, plain template, and the letters' logits are what is compared. Each run
fine-tunes it with LoRA on 400 questions for two epochs and is scored on 800 test questions of `world-facts`, or the 500
of OpenBookQA. Rows: before training, SFT, SFT + temperature, RCFT with held-out bins, the CogCalib variant that had the
least NLL on calibration questions with the small model, label smoothing, and tempered fine-tuning with T fixed before
the first step; on `world-facts` also mixup, which needs letters, and tempered fine-tuning that averages over the last
half of the steps, added after the first table had shown the average over all of them behind there. Detector, bins and
temperature are fitted on the same 200 held-out questions. Nothing is chosen on this model: strengths and learning rate
are those of the small one. "sft + oracle temperature", and what is left out of the training questions, are as in
`transfer.py`.

It is slow: in two processes on two cores 14 minutes a run, about 45 for `world-facts` and 30 for `openbookqa` and each
seed, 4 hours in all; a process takes 7 GB of memory. `--minutes 40` makes parts of less than an hour; the same command
goes on where it stopped. Tables and picture come when all runs of the given seeds are there; they go to
`benchmarks/results/second-family-PART.json` and beside it, unless the published one has a seed or a row that they lack,
or is of another model.
"""

from __future__ import annotations

import argparse
from functools import partial

import common
import transfer

from caltune.data import load_questions

PARTS = ("world-facts", "openbookqa")
SETTINGS = {
    **common.RUN,
    "answers": "letters",
    "epochs": 2,
    "train": 400,
    "fit": 200,
    "method_fit": 200,
    "seeds": [0, 1, 2],
}
TESTS = 800
QUICK = {"train": 16, "fit": 24, "method_fit": 24, "epochs": 1, "seeds": [0]}
QUICK_TESTS = 24
MAIN = ("sft", "rcft-held-out", "cogcalib-label-smoothing", "tempered")
METHODS = {
    **{name: transfer.METHODS[name] for name in MAIN},
    "tempered-last-half": ("Tempered", {"option_temperature_refit": False, "average_weights": 0.5}),
    "mixup": ("Mixup", {}),
}


def main() -> None:
    arguments, folder = common.parse(__doc__, "second_family", parts=PARTS, add=add_arguments)
    settings = common.settings_for(arguments, {**SETTINGS, "model": arguments.model}, QUICK)
    tests = QUICK_TESTS if arguments.quick else TESTS
    for part in [arguments.part] if arguments.part else PARTS:
        if part == "world-facts":
            read = partial(load_questions, part)
        else:
            read = partial(transfer.read_data, arguments.data, part)
        data = transfer.assemble(read("train"), read("calibration"), {part: read("test")}, settings, tests)
        methods = METHODS if part == "world-facts" else {name: METHODS[name] for name in MAIN}
        transfer.run_part(f"second-family-{part}", settings, folder, data, arguments, methods)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="GGUF file, folder or name of the model")
    transfer.add_arguments(parser)


if __name__ == "__main__":
    main()
