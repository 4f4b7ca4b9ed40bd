"""Settings: defaults <- TOML <- command line; what is wrong is refused in one line with the nearest valid name."""

import dataclasses
import subprocess
import sys

import pytest

from gptft.architecture import GPTConfig
from gptft.commands import train
from gptft.commands.common import make_parser
from gptft.config import FIELDS, TYPES, Config, check, fields_by_heading, resolve, shipped, to_toml
from gptft.errors import UserError


def parse_arguments(words):
    """The command line of train.py -> (path of --config, the fields that were given)."""
    options = make_parser(train).parse_args(words)
    return options.config, options.settings


def refused(message, *words, toml=None, tmp_path=None):
    """Parse and resolve `words`; the one-line error must hold `message`."""
    with pytest.raises(UserError) as caught:
        path, given = parse_arguments(list(words))
        if toml is not None:
            path = tmp_path / "c.toml"
            path.write_text(toml, encoding="utf-8")
        resolve(str(path) if path else "", given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.status == 2


def test_command_line_wins_over_file_wins_over_defaults(tmp_path):
    """A default that overwrote the file, or a file that overwrote a flag, would train with silent settings."""
    path = tmp_path / "c.toml"
    path.write_text("lr = 1e-3\nepochs = 7\n")
    config_path, given = parse_arguments(["--config", str(path), "--lr", "2e-3"])
    config = resolve(config_path, given)
    assert (config.lr, config.epochs, config.batch_size) == (2e-3, 7.0, Config().batch_size)


@pytest.mark.parametrize(
    "words, value",
    [
        (["--compile"], True),
        (["--compile", "--lr", "1"], True),
        (["--compile", "true"], True),
        (["--compile", "False"], False),
        (["--compile=false"], False),
        (["--compile=true"], True),
    ],
)
def test_booleans_take_both_forms(words, value):
    """`--compile false` read as "there is a value, so it is on" would compile."""
    assert parse_arguments(words)[1]["compile"] is value


def test_a_default_that_is_true_can_be_switched_off():
    assert resolve("", parse_arguments(["--mask_prompt", "false"])[1]).mask_prompt is False


def test_lists_tables_and_pairs_from_the_command_line():
    _, given = parse_arguments(
        ["--data", "a.json", "b.jsonl", "--fields", "instruction=q", "response=a=b", "--betas", "0.8", "0.9"]
    )
    assert given == {
        "data": ("a.json", "b.jsonl"),
        "fields": {"instruction": "q", "response": "a=b"},
        "betas": (0.8, 0.9),
    }


def test_a_list_given_in_pieces_is_one_list():
    """`--data a --data b` once trained on b alone, without a word about a."""
    _, given = parse_arguments(["--data", "a.json", "--lr", "1", "--data=b.json", "--fields", "text=t", "--lr", "2"])
    assert given["data"] == ("a.json", "b.json")
    assert given["lr"] == 2.0  # of a single value the last one counts, as everywhere


@pytest.mark.parametrize(
    "words",
    [
        ["--lora_targets", "attn,down"],
        ["--lora_targets", "attn", "down"],
        ["--lora_targets=attn,down"],
        ["--lora_targets", "attn,", "down"],
        ["--lora_targets", "attn", "--lora_targets", "down"],
    ],
)
def test_lists_of_layers_take_commas_and_spaces(words, tmp_path):
    """`attn,down` read as one word would be refused, or match nothing."""
    assert parse_arguments(words)[1] == {"lora_targets": ("attn", "down")}
    path = tmp_path / "c.toml"
    for value in ('"attn,down"', '["attn", "down"]'):
        path.write_text(f"lora_rank = 8\nlora_targets = {value}\n")
        assert resolve(str(path)).lora_targets == ("attn", "down")


def test_a_comma_in_a_path_stays_one():
    assert parse_arguments(["--data", "a,b.json"])[1]["data"] == ("a,b.json",)


def test_hyphens_and_equals_signs_are_understood():
    assert parse_arguments(["--batch-size=4", "--lr=1e-4"])[1] == {"batch_size": 4, "lr": 1e-4}


STREAM = ["--stream", "--max_steps", "9", "--data", "a.jsonl", "b.jsonl"]


@pytest.mark.parametrize(
    "message, words",
    [
        ("unknown flag --bach_size; did you mean '--batch_size'?", ["--bach_size", "4"]),
        ("unknown flag --learning_rat", ["--learning_rat", "4"]),
        ("did you mean '--config'?", ["--confg", "x.toml"]),
        ("--lr must be a number, not 'fast'", ["--lr", "fast"]),
        ("--lr must be a number, not 'nan'", ["--lr", "nan"]),
        ("--lr must be a number, not 'inf'", ["--lr", "inf"]),
        ("--batch_size must be a whole number, not '2.5'", ["--batch_size", "2.5"]),
        ("--compile must be true or false, not 'maybe'", ["--compile", "maybe"]),
        ("--betas must be 2 numbers", ["--betas", "0.9"]),
        ("--fields must be a table of KEY=VALUE", ["--fields", "instruction"]),
        ("--lr needs a value", ["--lr"]),
        ("--lr takes one value, found 2: 1 2", ["--lr", "1", "2"]),
        ("unexpected argument 'data.json'", ["data.json"]),
        ("unexpected argument '-lr'", ["-lr", "1"]),
        (
            "--truncation must be one of right, left, drop, not 'rigth'; did you mean 'right'?",
            ["--truncation", "rigth"],
        ),
        ("--batch_size must be at least 1, not 0", ["--batch_size", "0"]),
        ("--seed must be at least 0, not -1", ["--seed", "-1"]),
        ("--dropout must be below 1, not 1.0", ["--dropout", "1"]),
        ("--val_fraction must be below 1", ["--val_fraction", "1.5"]),
        ("together leave nothing to train on", ["--val_fraction", "0.5", "--test_fraction", "0.5"]),
        ("nothing would be trained", ["--epochs", "0"]),
        ("--max_length must be at least 2", ["--max_length", "1"]),
        ("--betas must lie between 0 and 1", ["--betas", "0.9", "1"]),
        ("--min_lr 1.0 is above --lr", ["--min_lr", "1"]),
        ("--device must be auto, cpu, cuda, cuda:N or mps, not 'gpu'", ["--device", "gpu"]),
        ("--config: no such file: nowhere.toml", ["--config", "nowhere.toml"]),
        ("--mix is given, but not --stream", ["--mix", "0.5", "0.5"]),
        ("--stream needs --max_steps", ["--stream"]),
        ("--data_fraction is given, and --stream", ["--stream", "--max_steps", "9", "--data_fraction", "0.5"]),
        ("--mix must be a share above 0 for each of the 2 words", [*STREAM, "--mix", "1"]),
        ("--mix must be a share above 0 for each of the 2 words", [*STREAM, "--mix", "1", "0"]),
        ("--shard_tokens must be at least 1, not 0", [*STREAM, "--shard_tokens", "0"]),
        ("--lora_rank must be at least 0, not -1", ["--lora_rank", "-1"]),
        ("--lora_alpha must be above 0, not 0.0", ["--lora_rank", "8", "--lora_alpha", "0"]),
        ("--lora_dropout must be below 1", ["--lora_rank", "8", "--lora_dropout", "1"]),
        ("up, down, not 'atn'; did you mean 'attn'?", ["--lora_rank", "8", "--lora_targets", "mlp,atn"]),
        ("--lora_targets names no layer", ["--lora_rank", "8", "--lora_targets", ","]),
        ("--lora_base must be one of fp32, bf16, int8, not 'int4'", ["--lora_rank", "8", "--lora_base", "int4"]),
        ("--lora_alpha is given, but --lora_rank is 0: there are no adapters", ["--lora_alpha", "32"]),
        ("--lora_base is given, but --lora_rank is 0", ["--lora_base", "int8"]),
        ("--lora_dora is given, but --lora_rank is 0", ["--lora_dora"]),
        ("--lora_targets is given, but --lora_rank is 0", ["--lora_targets", "q"]),
    ],
)
def test_what_is_wrong_on_the_command_line_is_one_line_naming_the_flag(message, words):
    refused(message, *words)


@pytest.mark.parametrize(
    "message, toml",
    [
        ("unknown key 'epoch'; did you mean 'epochs'?", "epoch = 3"),
        ("lr must be a number, not 'high'", 'lr = "high"'),
        ("batch_size must be a whole number, not True", "batch_size = true"),
        ("compile must be true or false, not 1", "compile = 1"),
        ("data must be a list, not 3", "data = 3"),
        ("init must be text, not 3", "init = 3"),
        ("fields must be a table", "fields = { instruction = 3 }"),
        ("c.toml: ", "lr = = 3"),
        ("--keep must be at least 1", "keep = 0"),
    ],
)
def test_what_is_wrong_in_the_file_is_one_line_naming_file_and_key(message, toml, tmp_path):
    refused(message, toml=toml, tmp_path=tmp_path)
    if not message.startswith("--"):
        refused("c.toml", toml=toml, tmp_path=tmp_path)


def test_numbers_may_be_written_as_text_only_where_that_is_what_they_are(tmp_path):
    """A whole number serves where a number is due, and a whole float where a whole number is."""
    path = tmp_path / "c.toml"
    path.write_text("epochs = 3\nbatch_size = 4.0\ndata = 'one.json'\n")
    config = resolve(str(path))
    assert config.epochs == 3.0 and config.batch_size == 4 and isinstance(config.batch_size, int)
    assert config.data == ("one.json",)


@pytest.mark.parametrize("left_out", [{"stream", "mix"}, {"data_fraction"}])  # which exclude each other
def test_every_field_survives_the_round_trip(tmp_path, left_out):
    """A field left out of the file would come back as its default."""
    changed = {}
    for name in FIELDS.keys() - left_out:
        value = getattr(Config(), name)
        kind = TYPES[name]
        if FIELDS[name].metadata["choices"]:
            choices = FIELDS[name].metadata["choices"]
            changed[name] = choices[:1] if isinstance(value, tuple) else choices[-1]
        elif kind is bool:
            changed[name] = not value
        elif kind is int:
            changed[name] = value + 3
        elif kind is float:
            changed[name] = value / 2 + 1e-6
        elif kind is str:
            changed[name] = "cpu" if name == "device" else value + "x"
        else:
            changed[name] = {"data": ("d", "e"), "val_data": ("v",), "test_data": ("t",)}.get(name) or (
                {"text": "t"} if name == "fields" else (0.5, 0.6)
            )
    config = check(Config(**changed))
    assert all(getattr(config, name) != getattr(Config(), name) for name in FIELDS.keys() - left_out)
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert resolve(str(path)) == dataclasses.replace(config, out_dir="", resume=False, shard="auto")


def test_a_runs_file_leaves_out_folder_and_resume():
    """Else `--config` on it would collide with the run it came from; and what several processes held could not be gone
    on with by one."""
    text = to_toml(Config(out_dir="somewhere", resume=True, shard="fsdp"))
    assert "out_dir" not in text and "resume" not in text and "fsdp\n" not in text and "shard =" not in text


def test_a_path_that_config_toml_cannot_hold_is_refused():
    """A file name whose bytes are no UTF-8 reaches Python as a surrogate: writing config.toml would fail mid-run."""
    refused("--data must be a list", "--data", "bad\udcff.json")


def test_help_lists_every_field_with_its_sentence_and_default():
    text = make_parser(train).format_help()
    for name, item in FIELDS.items():
        (line,) = [line for line in text.splitlines() if line.split()[:1] == [f"--{name}"]]
        assert item.metadata["doc"] in line
        if isinstance(item.default, int | float) and not isinstance(item.default, bool):
            assert line.endswith(f"[{item.default}]"), line
        for word in item.metadata["choices"]:
            assert word in line
    assert "[false]" in text and "[true]" in text and "[attn mlp]" in text and "(AdamW 0.9 0.999)" in text


def test_every_field_stands_under_a_heading_of_help_and_in_the_order_of_config():
    """A heading whose first field was renamed or moved would swallow its fields into the one above."""
    groups = fields_by_heading()
    assert list(groups) == [
        "what is trained",
        "data",
        "how long",
        "optimisation",
        "adapters",
        "evaluation",
        "checkpoints and logging",
        "the machine",
    ]
    assert [name for names in groups.values() for name in names] == list(FIELDS)
    assert all(name.startswith("lora_") for name in groups["adapters"])
    text = make_parser(train).format_help()
    assert text.index("\nhow long:") < text.index("\n  --epochs") < text.index("\noptimisation:")


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_help_does_not_import_torch():
    """`python train.py --help` answers within a second; importing torch alone takes two."""
    out = run_python(
        "import sys\n"
        "from gptft.__main__ import main, run\n"
        "try:\n    run(main, ['train', '--help'])\n"
        "except SystemExit as error: assert not error.code\n"
        "print([name for name in ('torch', 'numpy', 'tiktoken', 'transformers') if name in sys.modules])"
    )
    assert out.splitlines()[-1] == "[]"
    assert "--batch_size" in out


def test_a_misspelt_flag_is_answered_without_importing_torch():
    out = run_python(
        "import sys\n"
        "from gptft.__main__ import main, run\n"
        "try:\n    run(main, ['train', '--bach_size', '3'])\n"
        "except SystemExit as error: print(error.code, 'torch' in sys.modules)"
    )
    assert out.split() == ["2", "False"]


def test_importing_gptft_does_not_import_torch():
    out = run_python(
        "import sys, gptft\nprint('torch' in sys.modules)\nprint('finetune' in dir(gptft), gptft.UserError.__name__)\n"
    )
    assert out.split() == ["False", "True", "UserError"]


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    import gptft

    with pytest.raises(AttributeError, match="no attribute 'finetuner'"):
        _ = gptft.finetuner


def test_python_settings_are_checked_like_flags():
    with pytest.raises(UserError, match="unknown key 'epoch'; did you mean 'epochs'"):
        resolve("", {"epoch": 3})


@pytest.mark.parametrize("name", ["pretrain.toml", "instruct.toml", "gpt2.toml"])
def test_shipped_configs_are_valid(name):
    config = resolve(shipped(name))
    assert all(path.startswith("embedded:") for path in config.data) and bool(config.data) == (name != "gpt2.toml")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"n_hed": 2}, "unknown key 'n_hed'; did you mean 'n_head'?"),
        ({"n_layer": "2"}, "n_layer must be of type int, not '2'"),
        ({"n_layer": True}, "n_layer must be of type int, not True"),
        ({"position": "sinus"}, "position is 'sinus'"),
        ({"n_kv_head": 3}, "n_head 4 is no multiple of n_kv_head 3"),
    ],
)
def test_an_architecture_that_cannot_be_is_refused(change, message):
    values = {"vocab_size": 10, "block_size": 8, "n_layer": 1, "n_head": 4, "n_embd": 8} | change
    with pytest.raises(UserError) as caught:
        GPTConfig.from_dict(values, "config.json")
    assert message in str(caught.value)


def test_a_missing_key_of_the_architecture_is_named():
    with pytest.raises(UserError, match=r"config.json: 'block_size' is missing"):
        GPTConfig.from_dict({"vocab_size": 10}, "config.json")


def test_other_trainers_names_lead_to_ours():
    """Nobody who types --lerning_rate means --min_lr."""
    for flag, ours in (
        ("lerning_rate", "lr"),
        ("num_train_epochs", "epochs"),
        ("ouput_dir", "out_dir"),
        ("lora_r", "lora_rank"),
        ("target_modules", "lora_targets"),
        ("use_rslora", "lora_rslora"),
        ("use_dora", "lora_dora"),
        ("load_in_8bit", "lora_base"),
        ("lora_alfa", "lora_alpha"),
    ):
        with pytest.raises(UserError, match=rf"unknown flag --{flag}; did you mean '--{ours}'\?"):
            parse_arguments([f"--{flag}", "1"])
