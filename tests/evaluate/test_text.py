"""`evaluate text`: equal to lm-eval's own `hf` model before training, closed forms, kills, mistakes."""

import json
import math

import pytest
import torch
from backbones import config_of
from lm_recipe import tokenizer_of_bytes
from transformers import AutoModelForCausalLM

from lit_moss.cli.main import main
from lit_moss.errors import UserError
from lit_moss.evaluate import text
from lit_moss.evaluate.text import Config
from lit_moss.evaluate.text_model import is_backbone, open_text_model
from lit_moss.llm import SplitLM
from lit_moss.llm.backbone import load_text_tokenizer, row_format

pytest.importorskip("lm_eval", reason="needs the extra `evaluate`")

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from lit_moss.evaluate.lm_eval_model import LitMossLM, words_of

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A random backbone whose table has the tokenizer's words and no more, as SmolLM2's has."""
    folder = tmp_path_factory.mktemp("text") / "backbone"
    torch.manual_seed(3)
    sizes = {"num_hidden_layers": 4, "hidden_size": 32, "intermediate_size": 48}
    config = config_of("llama", vocab_size=259, **sizes, initializer_range=0.15)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer = tokenizer_of_bytes()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def split_model(backbone):
    """The backbone with a speech tail, as training starts from it."""
    folder = backbone.parent / "split"
    tokenizer = load_text_tokenizer(backbone)
    SplitLM.from_backbone(backbone, 2, 128, row_format=row_format(tokenizer, 128, eosp=32)).save_pretrained(
        folder, tokenizer
    )
    return folder


@pytest.fixture(scope="module")
def theirs(backbone):
    return HFLM(pretrained=str(backbone), device="cpu", dtype="float32", batch_size=3)


@pytest.fixture(scope="module", params=["split", "backbone"])
def ours(request, split_model, backbone):
    lm, tokenizer, _ = open_text_model(str(split_model if request.param == "split" else backbone))
    return LitMossLM(lm, tokenizer, batch_size=5)


def asked(kind, *arguments):
    return [Instance(kind, {}, args, 0, metadata=("task", i, 1)) for i, args in enumerate(arguments)]


@pytest.mark.slow
def test_likelihoods_are_those_of_the_hf_model(ours, theirs):
    pairs = [
        ("What do bees make?", " honey"), ("What do bees make?", " bread"), ("one ", "two"),
        ("", "no context"),
        ("x", " a longer continuation of several words"), ("<|im_start|>user\nHi<|im_end|>\n", "well"),
        ("long " * 120, "cut at its left end"), ("a", "b"), ("a", "c"), ("", "<|im_end|>so"),
    ]  # fmt: skip
    got, expected = (
        model.loglikelihood(asked("loglikelihood", *pairs), disable_tqdm=True) for model in (ours, theirs)
    )
    assert [sum_ for sum_, _ in got] == pytest.approx([sum_ for sum_, _ in expected], rel=1e-5, abs=1e-4)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in expected]


def test_rolling_likelihoods_are_those_of_the_hf_model(ours, theirs):
    texts = [("short",), ("of many windows, " * 100,), ("between",)]
    got, expected = (
        model.loglikelihood_rolling(asked("loglikelihood_rolling", *texts), disable_tqdm=True)
        for model in (ours, theirs)
    )
    assert got == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_generated_texts_are_those_of_the_hf_model(ours, theirs):
    prompts = ["What do bees make?", "one two", "a much longer prompt than the others are", "x" * 600]
    options = {"until": ["\n", "z"], "max_gen_toks": 12, "do_sample": False}
    requests = [(prompt, options) for prompt in prompts]
    requests.append(("other options", {"until": ["q"], "max_gen_toks": 4}))
    got, expected = (
        model.generate_until(asked("generate_until", *requests), disable_tqdm=True)
        for model in (ours, theirs)
    )
    assert got == expected
    assert any(got)


@pytest.mark.nightly
@pytest.mark.parametrize("options", [{}, {"num_fewshot": 2, "apply_chat_template": True}])
def test_a_task_has_the_accuracies_of_the_hf_model(split_model, theirs, options):
    lm, tokenizer, _ = open_text_model(str(split_model))
    tasks, manager = text.load_tasks(["everyday_choices"])
    found = []
    for model in (LitMossLM(lm, tokenizer), theirs):
        results = lm_eval.simple_evaluate(
            model=model, tasks=tasks, task_manager=manager, bootstrap_iters=0, limit=5, **options
        )
        found.append(results["results"]["everyday_choices"])
        tasks, manager = text.load_tasks(["everyday_choices"])
    assert found[0] == found[1]


@pytest.mark.slow
def test_sampling_is_repeatable_and_gives_words_alone(ours):
    options = {"until": [], "max_gen_toks": 30, "do_sample": True, "temperature": 1.5}
    requests = asked("generate_until", ("so", options), ("so", options))
    ours._repeats.clear()
    first = ours.generate_until(requests)
    assert first[0] != first[1]
    ours._repeats.clear()
    assert ours.generate_until(requests) == first
    ours._repeats.clear()


def test_ids_of_speech_and_filler_are_no_words(split_model):
    lm, tokenizer, _ = open_text_model(str(split_model))
    is_word_V = words_of(lm, tokenizer)
    assert len(is_word_V) == lm.format.text_vocab_size == 384
    assert is_word_V.nonzero()[:, 0].tolist() == list(range(259))
    assert not is_word_V[lm.format.sosp_token_id]


def test_probabilities_of_words_add_up_to_1(split_model):
    lm, tokenizer, _ = open_text_model(str(split_model))
    model = LitMossLM(lm, tokenizer)
    pairs = [("so", [5, 6], [word]) for word in range(259)]
    total = sum(math.exp(log_prob) for log_prob, _ in model._loglikelihood_tokens(pairs))
    assert total == pytest.approx(1.0, abs=1e-5)


def test_backbones_are_told_from_split_models(backbone, split_model, tmp_path):
    assert is_backbone("embedded:smollm2-135m")
    assert is_backbone(str(backbone))
    assert not is_backbone(str(split_model))
    assert not is_backbone(str(tmp_path))


# --- whole runs ---------------------------------------------------------------------------------------------


def config(model, tmp_path, **more) -> Config:
    return Config(str(model), run_root=str(tmp_path / "runs"), **more)


@pytest.mark.slow
def test_a_run_reports_each_task_and_question(split_model, tmp_path, capsys):
    metrics = text.run(config(split_model, tmp_path))
    assert metrics["everyday_choices/n"] == 20
    assert 0 <= metrics["everyday_choices/acc"] <= 1
    (folder,) = (tmp_path / "runs/text").glob("text-*")
    assert len((folder / "items.jsonl").read_text().splitlines()) == 80
    assert len((folder / "items.csv").read_text().splitlines()) == 21
    assert "| everyday_choices | 20 | 0 | acc |" in capsys.readouterr().out
    assert text.run(config(split_model, tmp_path, batch_size=7)) == metrics
    assert "done before" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_result(split_model, tmp_path, monkeypatch):
    whole = text.run(config(split_model, tmp_path / "whole", limit=6))
    calls = []
    compute = LitMossLM._log_probs

    def dies(self, pairs):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(len(pairs))
        return compute(self, pairs)

    settings = {"limit": 6, "batch_size": 5}
    with monkeypatch.context() as patch:
        patch.setattr(LitMossLM, "_log_probs", dies)
        with pytest.raises(KeyboardInterrupt):
            text.run(config(split_model, tmp_path, **settings))
    computed = []
    monkeypatch.setattr(
        LitMossLM, "_log_probs", lambda self, pairs: computed.extend(pairs) or compute(self, pairs)
    )
    assert text.run(config(split_model, tmp_path, **settings)) == whole
    assert len(computed) == 24 - 15


@pytest.mark.nightly  # lm-eval looks through all its tasks
def test_local_tasks_and_groups_with_local_data(split_model, tmp_path, monkeypatch):
    """A group of MMLU's subjects with copies of the data, as the head of the YAML describes."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    question = {"question": "2+2?", "subject": "anatomy", "choices": ["3", "4", "5", "6"], "answer": 1}
    for split in ("dev", "test"):
        (tmp_path / f"{split}.jsonl").write_text((json.dumps(question) + "\n") * 3)
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "local_mmlu.yaml").write_text(
        "group: local_mmlu\n"
        "task:\n"
        "  - task: mmlu_anatomy\n"
        "    dataset_path: json\n"
        "    dataset_name: null\n"
        f"    dataset_kwargs: {{data_files: {{dev: {tmp_path}/dev.jsonl, test: {tmp_path}/test.jsonl}}}}\n"
        "aggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    settings = {"tasks": ["local_mmlu"], "task_folders": [str(folder)], "num_fewshot": 1}
    metrics = text.run(config(split_model, tmp_path, **settings))
    assert metrics["local_mmlu/n"] == metrics["mmlu_anatomy/n"] == 3
    assert metrics["local_mmlu/acc"] == metrics["mmlu_anatomy/acc"]
    assert metrics["local_mmlu/acc"] in (0.0, 1.0)  # the same question three times
    with pytest.raises(UserError, match="no task 'local_mmlus': did you mean local_mmlu"):
        text.run(config(split_model, tmp_path, **settings | {"tasks": ["local_mmlus"]}))


def test_mistakes_are_one_line(split_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(f"model: {split_model}\n")
    for words, message in (
        (["--tasks", "[gone.yaml]"], "no file gone.yaml"),
        (["--tasks", "[]"], "tasks is [], expected names of tasks"),
        (["--task_folders", "[gone]"], "no folder gone"),
        (["--limit", "0"], "limit is 0, expected 1 or more"),
        (["--num_fewshot", "-1"], "num_fewshot is -1, expected 0 or more"),
        (["--system", "Hi"], "set chat_template to true"),
        (["--model", "gone"], "gone"),
    ):
        assert main(["evaluate", "text", "-c", "c.yaml", *words]) == 2
        assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_task_without_room_for_its_answer_is_refused(ours):
    with pytest.raises(UserError, match="asks for 512 new tokens, but the backbone has positions for 512"):
        ours.generate_until(asked("generate_until", ("so", {"until": ["x"], "max_gen_toks": 512})))


@pytest.mark.network
@pytest.mark.nightly
def test_smollm2_has_the_scores_of_the_hf_model():
    from lit_moss.llm.backbone import SMOLLM2, resolve_backbone

    lm, tokenizer, _ = open_text_model(SMOLLM2)
    found = []
    for model in (
        LitMossLM(lm, tokenizer, batch_size=16),
        HFLM(pretrained=str(resolve_backbone(SMOLLM2)), device="cpu", dtype="float32", batch_size=4),
    ):
        tasks, manager = text.load_tasks(["everyday_choices"])
        results = lm_eval.simple_evaluate(
            model=model, tasks=tasks, task_manager=manager, bootstrap_iters=0, num_fewshot=2
        )
        rolling = model.loglikelihood_rolling(asked("loglikelihood_rolling", ("The old bridge is closed.",)))
        options = {"until": ["\n"], "max_gen_toks": 8}
        answers = model.generate_until(
            asked("generate_until", ("Question: What do bees make?\nAnswer:", options))
        )
        sums = [r[0] for s in results["samples"]["everyday_choices"] for r in s["filtered_resps"]]
        found.append((results["results"]["everyday_choices"], sums, rolling, answers))
    (ours, our_sums, our_rolling, our_answers), (theirs, sums, rolling, answers) = found
    assert ours == theirs
    assert our_sums == pytest.approx(sums, rel=1e-4, abs=1e-3)
    assert our_rolling == pytest.approx(rolling, rel=1e-5)
    assert our_answers == answers
    assert ours["acc,none"] > 0.5
