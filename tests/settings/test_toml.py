"""Settings in TOML: what other programs write is read, and what is written here is read as it was."""

from gptft.config import Config, resolve, to_toml


def test_a_toml_file_from_windows_notepad_is_read(tmp_path):
    """It begins with a byte order mark, which tomllib refuses."""
    path = tmp_path / "c.toml"
    path.write_bytes(b"\xef\xbb\xbflr = 0.5\r\n")
    assert resolve(str(path)).lr == 0.5


ODD = "quote \" back\\slash \t tab \x7f del \x00 nul \n line é 日本 😀 \u2028 # no comment 'single'"


def test_the_written_file_gives_the_same_config_with_odd_characters_too(tmp_path):
    """`--config` on a run's config.toml repeats the run: paths and keys with quotes, newlines and emoji included."""
    config = Config(
        init=ODD,
        data=(ODD, "b.json"),
        fields={ODD: ODD, "a.b": "c d"},
        template=ODD,
        lr=1.2345678901234567e-7,
        eps=1e-300,
        betas=(0.1, 0.30000000000000004),
        compile=True,
        epochs=2.5,
        seed=2**62,
        mask_prompt=False,
    )
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config, leave_out=()), encoding="utf-8", newline="")
    assert resolve(str(path)) == config
