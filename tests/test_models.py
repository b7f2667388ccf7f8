"""Models from folders, adapters, GGUF files and names: the same logits back, and one readable error otherwise."""

from __future__ import annotations

import builtins
import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import peft
import pytest
import torch
from gguf_file import write_gguf
from peft import LoraConfig, get_peft_model
from tiny import tiny_model, tiny_tokenizer

from caltune import models
from caltune.errors import InputError
from caltune.models import default_device, default_dtype, load_model, load_tokenizer

IDS = torch.tensor([[5, 6, 7, 8, 200, 300]])
TEXT = "Question: What is the capital of Chile?\nAnswer: Santiago de Chile<|end|>"


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read-only for the tests: a folder of the tiny model, an adapter on it, and a GGUF file of it."""
    root = tmp_path_factory.mktemp("saved")
    tiny_model().save_pretrained(root / "base")
    tiny_tokenizer().save_pretrained(root / "base")
    write_gguf(tiny_model(), tiny_tokenizer(), root / "tiny.gguf")
    model, _ = load_model(root / "base")
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(root / "adapter")
    return root


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved / "base", tmp_path / "base"))


@pytest.fixture
def adapter(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved / "adapter", tmp_path / "adapter"))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_folder(saved: Path) -> None:
    model, tokenizer = load_model(saved / "base")
    assert torch.equal(logits(model), logits(tiny_model()))
    assert not model.training
    assert model.dtype == torch.float32
    assert model.name_or_path == model.config._name_or_path == str(saved / "base")
    assert tokenizer(TEXT).input_ids == tiny_tokenizer()(TEXT).input_ids
    assert tokenizer.chat_template == tiny_tokenizer().chat_template
    assert tokenizer.pad_token == "<|pad|>"


def test_dtype_and_device_as_asked(saved: Path) -> None:
    model, _ = load_model(str(saved / "base"), dtype=torch.bfloat16, device="cpu")
    assert model.dtype == torch.bfloat16
    assert model.device == torch.device("cpu")


def test_default_dtype() -> None:
    assert default_dtype(torch.device("cpu")) == default_dtype(torch.device("mps")) == torch.float32
    assert default_device().type in ("cpu", "cuda", "mps")


def test_padding_is_the_end_token_where_there_is_none(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    for found in (load_model(folder)[1], load_tokenizer(folder)):
        assert (found.pad_token, found.pad_token_id) == ("<|end|>", 2)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match="its tokenizer has neither a padding nor an end-of-text token"):
        load_model(folder)


def test_an_adapter_on_its_base(saved: Path) -> None:
    assert json.loads((saved / "adapter/adapter_config.json").read_text())["base_model_name_or_path"] == str(
        saved / "base"
    )
    model, tokenizer = load_model(saved / "adapter")
    assert not model.training
    expected = peft.PeftModel.from_pretrained(tiny_model(), saved / "adapter")
    assert torch.equal(logits(model), logits(expected))
    assert (logits(model) - logits(tiny_model())).abs().max() > 0.1
    assert tokenizer(TEXT).input_ids == tiny_tokenizer()(TEXT).input_ids  # of the base: the adapter has none
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_an_adapter_to_train_on(saved: Path) -> None:
    model, _ = load_model(saved / "adapter", trainable_adapter=True)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in model.named_parameters() if "lora_" in name} != set()


def test_an_adapters_own_tokenizer_comes_first(adapter: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "mine"
    tokenizer.save_pretrained(adapter)
    assert load_model(adapter)[1].chat_template == load_tokenizer(adapter).chat_template == "mine"


@pytest.mark.parametrize("loader", [load_model, load_tokenizer])
def test_an_adapter_on_itself(adapter: Path, loader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(adapter.parent)
    change(Path(shutil.copytree("adapter", "other")) / "adapter_config.json", base_model_name_or_path="adapter")
    for base in (str(adapter), "adapter", "./adapter/../adapter", "other"):
        change(adapter / "adapter_config.json", base_model_name_or_path=base)
        with pytest.raises(InputError, match=r"adapter_config.json: an adapter cannot be its own base model"):
            loader("adapter")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "must be JSON naming base_model_name_or_path"),
        ("{}", "must be JSON naming base_model_name_or_path"),
        ("[]", "must be JSON naming base_model_name_or_path"),
        ('{"base_model_name_or_path": null}', "base_model_name_or_path must name a model, got None"),
        ('{"base_model_name_or_path": "/no/such/base"}', "model '/no/such/base': no such folder"),
    ],
)
def test_an_adapter_without_base(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(InputError, match=f"{re.escape(message)}$"):
        load_model(tmp_path)


def test_an_adapter_that_cannot_be_read(adapter: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(InputError, match=f"^model '{adapter}': cannot be loaded: "):
        load_model(adapter)
    weights.unlink()
    with pytest.raises(InputError, match=f"^model '{adapter}': cannot be loaded: "):
        load_model(adapter)
    change(adapter / "adapter_config.json", peft_type="NONSENSE")
    with pytest.raises(InputError, match=f"^model '{adapter}': cannot be loaded: 'NONSENSE'"):
        load_model(adapter)


def test_gguf_gives_the_same_logits_and_can_be_saved(saved: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(saved / "tiny.gguf")
    torch.testing.assert_close(logits(model), logits(tiny_model()), atol=1e-6, rtol=0)
    assert model.name_or_path == str(saved / "tiny.gguf")
    assert model.config.max_position_embeddings == 256
    assert (tokenizer.pad_token, tokenizer.chat_template) == ("<|pad|>", tiny_tokenizer().chat_template)
    assert tokenizer(TEXT).input_ids == tiny_tokenizer()(TEXT).input_ids
    model.save_pretrained(tmp_path)  # refused while the reader's quantization marks are there
    tokenizer.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    again, _ = load_model(tmp_path)
    assert torch.equal(logits(again), logits(model))


def test_gguf_in_the_working_folder(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved)
    assert torch.equal(logits(load_model("tiny.gguf")[0]), logits(load_model(saved / "tiny.gguf")[0]))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.5, 0.999])
def test_a_gguf_file_cut_short(saved: Path, tmp_path: Path, share: float) -> None:
    content = (saved / "tiny.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=f"^model '{path}': cannot be loaded: "):
        load_model(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_weights_cut_short(folder: Path, share: float) -> None:
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=f"^model '{folder}': cannot be loaded: "):
        load_model(folder)


def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no model")
    neither = "a model folder needs a config.json or an adapter_config.json, found neither"
    for name, message in {
        "missing.gguf": "no such file",
        str(tmp_path / "missing.gguf"): "no such file",
        str(tmp_path / "missing"): "no such folder",
        "./missing": "no such folder",
        "empty": neither,
        "notes.txt": neither,
    }.items():
        for loader in (load_model, load_tokenizer):
            with pytest.raises(InputError, match=f"^{re.escape(f'model {name!r}: {message}')}$"):
                loader(name)


@pytest.mark.parametrize("name", ["no-such-owner/no-such-model", "no such model", "a/b/c/d"])
def test_a_nonsense_hub_id_is_one_error_at_once(name: str) -> None:
    start = time.perf_counter()
    with pytest.raises(InputError, match=f"^model '{name}': cannot be loaded: ") as caught:
        load_model(name)
    assert time.perf_counter() - start < 2
    assert len(str(caught.value).splitlines()) == 1


def test_a_folders_own_code_is_never_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proof = tmp_path / "it ran"
    (folder / "own.py").write_text(
        f"open({str(proof)!r}, 'w').close()\nfrom transformers import LlamaConfig as C, LlamaForCausalLM as M\n"
    )
    names = {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}
    change(folder / "config.json", auto_map=names, model_type="own-llama")
    monkeypatch.setattr(builtins, "input", lambda *_: "y")  # transformers asks unless told
    with pytest.raises(InputError, match=r"cannot be loaded: .*custom code"):
        load_model(folder)
    assert not proof.exists()


def test_trust_is_never_asked_for(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    for kind in (models.AutoModelForCausalLM, models.AutoTokenizer, peft.PeftModel):
        original = kind.from_pretrained

        def spy(*arguments: Any, _original: Any = original, **options: Any) -> Any:
            given.append(options.get("trust_remote_code", False))
            return _original(*arguments, **options)

        monkeypatch.setattr(kind, "from_pretrained", spy)
    for name in ("base", "tiny.gguf", "adapter"):
        load_model(saved / name)
    assert len(given) >= 7
    assert set(given) == {False}


@pytest.fixture
def installed(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny GGUF file stands for the one of the installed package; the cache is empty."""
    monkeypatch.setattr(models, "_smollm2_gguf", lambda: saved / "tiny.gguf")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "caltune"


def test_the_embedded_model_is_converted_once(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = load_model("smollm2")
    assert [path.name.split("-")[0] for path in installed.iterdir()] == ["tiny"]  # nothing unfinished beside it
    monkeypatch.setattr(models, "_convert", lambda *_: pytest.fail("converted twice"))
    again, _ = load_model("smollm2")
    torch.testing.assert_close(logits(model), logits(tiny_model()), atol=1e-6, rtol=0)
    assert torch.equal(logits(again), logits(model))
    assert model.name_or_path == model.config._name_or_path == "smollm2"
    assert load_tokenizer("smollm2")(TEXT).input_ids == tokenizer(TEXT).input_ids


def test_the_embedded_model_without_a_place_to_write(installed: Path) -> None:
    installed.parent.write_text("a file where the cache should be")
    torch.testing.assert_close(logits(load_model("smollm2")[0]), logits(tiny_model()), atol=1e-6, rtol=0)


def test_another_process_converts_first(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = models._convert

    def late(gguf: Path, folder: Path) -> None:
        convert(gguf, folder)
        convert(gguf, folder)  # its rename meets a folder that is there

    monkeypatch.setattr(models, "_convert", late)
    load_model("smollm2")
    assert len(list(installed.iterdir())) == 1


def test_without_the_package_the_hub_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_SMOLLM2_PACKAGE", "no_such_package")
    monkeypatch.setattr(models, "_SMOLLM2_HUB_ID", "no-such-owner/no-such-model")
    with pytest.raises(InputError, match=r"^model 'smollm2': cannot be loaded: "):
        load_model("smollm2")
