"""Policies: loaded, saved, and asked survey questions with lettered options."""

import ast
import dataclasses
import importlib.util
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import pluralllm_fl.alignment
from pluralllm_fl.alignment.policy import (
    Policy,
    load_policy,
    read_record,
    require_align,
    save_policy,
)
from pluralllm_fl.alignment.prompts import Prompts, survey_rows, survey_text
from pluralllm_fl.errors import ConfigError, EmbeddingError
from pluralllm_fl.preferences import Question
from tests.policies import byte_tokenizer, tiny_policy
from tests.tiny_gguf import build_gguf

TEA = Question("Tea?", ("Yes", "No"))
PRESS = Question("Trust the press?", ("A lot", "Some", "None"))


def test_the_group_comes_last_so_that_groups_share_a_prefix() -> None:
    assert survey_text(TEA, "Spain", order=[1, 0]) == (
        "Tea?\nA. No\nB. Yes\nAnswer with the letter that this group would choose: Spain"
    )
    assert survey_text(TEA) == "Tea?\nA. Yes\nB. No\nAnswer with one letter."


def test_letters_end_at_26() -> None:
    many = Question("Which?", tuple(f"option {i}" for i in range(27)))
    assert survey_text(Question("Which?", many.options[:26])).splitlines()[-2] == "Z. option 25"
    with pytest.raises(ConfigError, match="'Which\\?' has 27 options; letters end at 26"):
        survey_text(many)


def word_tokenizer(words: list[str], pre_tokenizer: Any) -> Any:
    vocabulary = {word: place for place, word in enumerate(["<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.mark.parametrize(("chat", "said"), [(False, " B"), (True, "B")])
def test_a_letter_is_the_token_that_comes_next(chat: bool, said: str) -> None:
    """After "Answer:" it has a space, after a chat template's line break it has none."""
    prompts = Prompts.of(tiny_policy(chat))
    assert prompts.tokenizer.decode(prompts.letter_ids(26)[1:2]) == said
    assert len(set(prompts.letter_ids(26))) == 26
    answer = prompts.answer("B")
    assert answer == ([{"role": "assistant", "content": "B"}] if chat else " B")


def test_a_letter_of_a_sentencepiece_tokenizer_holds_its_space() -> None:
    words = ["▁" + letter for letter in ascii_uppercase] + list(ascii_uppercase) + ["▁Answer:"]
    prompts = Prompts(word_tokenizer(words, pre_tokenizers.Metaspace()), chat=False)
    assert prompts.tokenizer.convert_ids_to_tokens(prompts.letter_ids(2)) == ["▁A", "▁B"]


def test_a_tokenizer_without_the_letters_is_refused() -> None:
    prompts = Prompts(word_tokenizer(["A", "Answer"], pre_tokenizers.WhitespaceSplit()), chat=False)
    assert len(prompts.letter_ids(1)) == 1
    with pytest.raises(ConfigError, match="no token of its own for the answer 'B'"):
        prompts.letter_ids(2)


def test_a_conversation_needs_a_template() -> None:
    with pytest.raises(ConfigError, match="'tiny' has no chat template"):
        Prompts.of(tiny_policy(), chat=True)
    assert Prompts.of(tiny_policy(chat=True), chat=False).ask(TEA) == survey_text(TEA) + "\nAnswer:"


def test_a_conversation_is_read_as_the_template_writes_it() -> None:
    tokenizer = byte_tokenizer(chat=True)
    prompts = Prompts(tokenizer, chat=True)
    text = f"<user>\n{survey_text(TEA)}<eos>\n<assistant>\n"
    assert prompts.encode(prompts.ask(TEA)) == tokenizer.encode(text, add_special_tokens=False)


def test_rows_ask_everything_in_every_pass_and_shuffle_the_options() -> None:
    prompts = Prompts(byte_tokenizer(), chat=False)
    rows = survey_rows(prompts, [TEA, PRESS], ["Spain", "Chile"], seed=1, count=40)
    for start in range(0, 40, 4):
        asked = {(row["question"], row["group"]) for row in rows[start : start + 4]}
        assert len(asked) == 4
    for row in rows:
        question = TEA if row["question"] == "Tea?" else PRESS
        assert sorted(row["options"]) == sorted(question.options)
        lines = row["prompt"].splitlines()
        listed = [f"{letter}. {o}" for letter, o in zip("ABC", row["options"], strict=False)]
        assert lines == [question.text, *listed, lines[-2], "Answer:"]
        assert lines[-2].endswith(row["group"])
    first = [row["options"][0] for row in rows if row["question"] == "Trust the press?"]
    assert set(first) == set(PRESS.options)
    assert rows == survey_rows(prompts, [TEA, PRESS], ["Spain", "Chile"], seed=1, count=40)
    assert rows[:4] != survey_rows(prompts, [TEA, PRESS], ["Spain", "Chile"], seed=2)
    assert len(survey_rows(prompts, [TEA, PRESS], [None])) == 2


def logits(policy: Policy) -> torch.Tensor:
    with torch.no_grad():
        return policy.model(torch.arange(3, 40)[None]).logits


def test_a_policy_is_saved_as_it_is(tmp_path: Path) -> None:
    policy, folder = tiny_policy(chat=True), tmp_path / "deep" / "policy"
    save_policy(policy, folder, {"align.json": b'{"method": "sft"}'})
    loaded = load_policy(str(folder), device="cpu")
    assert torch.equal(logits(loaded), logits(policy))
    assert loaded.tokenizer.chat_template == policy.tokenizer.chat_template
    assert read_record(folder) == {"method": "sft"}
    assert not [file for file in folder.iterdir() if file.suffix in (".bin", ".pt")]


def test_a_gguf_file_can_be_saved_and_loads_as_a_plain_model(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="the extra 'gguf' is not installed")
    from transformers import AutoModelForCausalLM

    path = build_gguf(tmp_path / "tiny.gguf")
    policy = load_policy(path, device="cpu")
    dequantised = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name)
    assert torch.equal(logits(policy), logits(dataclasses.replace(policy, model=dequantised)))
    save_policy(policy, tmp_path / "saved")
    assert torch.equal(logits(load_policy(tmp_path / "saved", device="cpu")), logits(policy))
    assert policy.tokenizer.pad_token == policy.tokenizer.eos_token


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{tmp}/empty", "is not a policy: it holds no config.json."),
        ("{tmp}/adapter", "adapter of PEFT: merge it"),
        ("{tmp}/gguf", "name the file itself: .*model.gguf"),
        ("{tmp}/bare", "holds no model.safetensors"),
        ("{tmp}/damaged", "cannot be loaded as a causal language model"),
        ("{tmp}/bare/config.json", "is not a policy. Name a folder"),
        ("nowhere.gguf", "is not a policy. Name a folder"),
        ("no/such/folder", "is not a policy. Name a folder"),
    ],
)
def test_what_is_no_policy_is_refused(tmp_path: Path, source: str, message: str) -> None:
    for file, content in {
        "empty/notes.txt": "", "adapter/adapter_config.json": "{}", "gguf/model.gguf": "",
        "bare/config.json": "{}", "damaged/config.json": '{"model_type": "llama"}',
        "damaged/model.safetensors": "nonsense",
    }.items():  # fmt: skip
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_policy(source.format(tmp=tmp_path), device="cpu")


def test_weights_that_lack_a_part_are_refused(tmp_path: Path) -> None:
    policy = tiny_policy()
    save_policy(policy, tmp_path / "policy")
    policy.model.config.num_hidden_layers = 3
    policy.model.config.save_pretrained(tmp_path / "policy")
    with pytest.raises(ConfigError, match=r"its weights lack 9 tensors, first model\.layers\.2"):
        load_policy(tmp_path / "policy", device="cpu")


def test_without_the_extra_the_error_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    absent = ("trl", "gguf")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in absent else find(name)
    )
    with pytest.raises(ConfigError, match=r'trl.*pip install "pluralllm-fl\[align\]"'):
        require_align()
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(EmbeddingError, match=r"pluralllm-fl\[gguf\]"):
        load_policy(tmp_path / "model.gguf")


def test_everything_can_be_imported_without_the_extra() -> None:
    """No heavy library is imported at the top of a file."""
    for path in Path(pluralllm_fl.alignment.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            heavy = {"trl", "peft", "transformers", "datasets"}
            assert not heavy & {str(name).split(".")[0] for name in names}, path


def test_padding_is_there_and_on_the_left(tmp_path: Path) -> None:
    policy = tiny_policy()
    policy.tokenizer.pad_token, policy.tokenizer.padding_side = None, "right"
    save_policy(policy, tmp_path / "policy")
    tokenizer = load_policy(tmp_path / "policy", device="cpu").tokenizer
    ids = tokenizer(["a", "abc"], padding=True)["input_ids"]
    np.testing.assert_array_equal(ids[0][:2], [tokenizer.eos_token_id] * 2)
