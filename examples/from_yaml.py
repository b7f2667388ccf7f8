"""All settings in a YAML file, as TRL's own scripts take them; a flag wins over the file.

python examples/from_yaml.py --config examples/from_yaml.yaml --model_name_or_path MODEL --dataset_name FOLDER
"""

from datasets import load_dataset
from trl import ModelConfig, ScriptArguments, TrlParser, get_peft_config, get_quantization_config

from caltune import CalibrationConfig, CalibrationTrainer


def main(script: ScriptArguments, args: CalibrationConfig, model: ModelConfig) -> None:
    args.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
    }
    data = load_dataset(script.dataset_name, name=script.dataset_config)
    trainer = CalibrationTrainer(
        model=model.model_name_or_path,
        args=args,
        train_dataset=data[script.dataset_train_split],
        eval_dataset=data[script.dataset_test_split] if args.eval_strategy != "no" else None,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model(args.output_dir)
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=script.dataset_name)


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments, CalibrationConfig, ModelConfig)).parse_args_and_config())
