"""What results were made with."""

import platform
import shlex
import subprocess
from dataclasses import asdict, dataclass, replace

import pytest
import torch

from dtp import __version__
from dtp.algorithms.options import DTPOptions
from dtp.cli.arguments import parse
from dtp.cli.train import main
from dtp.errors import UserError
from dtp.fields import option
from dtp.run import provenance
from dtp.run.folder import Run, differing_options, may_vary, saved_options, write_config


def test_versions_and_hardware_are_those_of_this_process():
    found = provenance.versions()
    assert (found["dtp"], found["torch"]) == (__version__, torch.__version__)
    assert found["python"] == platform.python_version() and found["lightning"]
    assert provenance.hardware()["threads"] == torch.get_num_threads()
    assert provenance.cpu_name().endswith(" cores")


# Without what it remembers.
commit = provenance.commit.__wrapped__


@pytest.mark.parametrize("changed", [False, True])
def test_commit_is_that_of_the_source_tree_and_says_whether_files_differ(changed, tmp_path, monkeypatch):
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(tmp_path)]
    (tmp_path / "provenance.py").write_text("")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "First"]):
        subprocess.run([*git, *words], check=True)
    if changed:
        (tmp_path / "provenance.py").write_text("changed")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    hashed = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    assert commit() == hashed[:12] + ("-dirty" if changed else "")


def test_the_commit_is_that_of_the_code_that_a_process_has_begun_with(monkeypatch):
    def ends(config):
        # After hours, in which the files have changed.
        said["describe"] = "second"
        raise UserError("done")

    said = {"ls-files": "provenance.py", "describe": "first"}
    monkeypatch.setattr(provenance, "_git", lambda command, *words: said[command])
    monkeypatch.setattr("dtp.run.training.build", ends)
    provenance.commit.cache_clear()
    try:
        assert main(["--algo", "bp"]) == 2
        assert provenance.versions()["commit"] == "first"
    finally:
        provenance.commit.cache_clear()


def test_the_commit_of_a_project_that_dtp_is_installed_in_is_none_of_ours(tmp_path, monkeypatch):
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(tmp_path)]
    package = tmp_path / ".venv" / "site-packages" / "dtp" / "run"
    package.mkdir(parents=True)
    (package / "provenance.py").write_text("")
    (tmp_path / ".gitignore").write_text(".venv\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "Theirs"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))
    assert commit() == ""


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert commit() == ""


@pytest.mark.parametrize(
    "text, shown",
    [
        ("postgresql://me:secret@host/db", "postgresql://me:***@host/db"),
        ("postgresql+psycopg2://me:s/e@c ret@host/db", "postgresql+psycopg2://me:***@host/db"),
        ("--store=redis://:secret@host:6379", "--store=redis://:***@host:6379"),
        ("mysql://host/db?user=me&password=secret&ssl=1", "mysql://host/db?user=me&password=***&ssl=1"),
        ("https://host/x?access_token=secret", "https://host/x?access_token=***"),
        ("https://me@host:80/db", "https://me@host:80/db"),
        ("sqlite:///study.db", "sqlite:///study.db"),
        ("my:data@home", "my:data@home"),
    ],
)
def test_passwords_of_urls_are_masked(text, shown):
    assert provenance.masked(text) == shown
    assert provenance.recorded(["python", text]) == shlex.join(["python", shown])


@pytest.mark.parametrize(
    "command, kept",
    [
        ("--lr 1 --data-dir /a --seed 2", "--lr 1 --data-dir DIR --seed 2"),
        ("--data_dir=/a --init-weights=/b/c", "--data_dir DIR --init-weights DIR"),
        ("lee --output /a --draw", "lee --draw"),
        ("--study /a --runs /b --jobs 2", "--jobs 2"),
        ("--run_dir=/a --resume auto --verbose", "--verbose"),
    ],
)
def test_recorded_commands_name_no_folder_of_a_machine(command, kept):
    assert provenance.without_places(command.split()) == kept.split()


def test_no_file_of_a_run_keeps_a_password(tmp_path):
    url = "https://me:secret@host/data"
    config = parse(["--data-dir", url])
    write_config(Run(tmp_path), config, provenance.recorded(["python", "main.py", "--data-dir", url]))
    text = (tmp_path / "config.yaml").read_text()
    assert "secret" not in text and text.count("https://me:***@host/data") == 3
    # What an earlier version has kept is the same configuration.
    earlier = {name: value for name, value in config.as_dict().items() if name not in may_vary(config, "start")}
    assert differing_options(earlier, config) == {}


def test_a_configuration_of_an_earlier_version_lacks_options_that_change_nothing():
    config = parse(["--algo", "dualprop", "--data", "digits"])
    saved = saved_options(config)
    for name in ("backward", "backward_init"):
        del saved[name]
    assert differing_options(saved, config) == {}
    assert "backward" in differing_options(
        saved, parse([*"--algo dualprop --data digits --backward kolen-pollack".split()])
    )


@dataclass
class Own(DTPOptions):
    # Of a rule of a user's own.
    shown: int = option(3, varies="resumed")
    noted: str = option("", varies="start")
    added: int = option(7, before=1)
    alpha: float = 0.5


def test_options_of_a_rule_of_ones_own_say_by_themselves_whether_a_resumed_run_may_change_them():
    config = parse(["--data", "digits"])
    own = replace(config, algo=Own(**asdict(config.algo)))
    saved = saved_options(own)
    assert saved["shown"] == 3 and saved["alpha"] == 0.5 and "noted" not in saved
    changed = replace(own, algo=replace(own.algo, shown=4, noted="here", alpha=0.75))
    assert differing_options(saved, changed) == {"alpha": (0.5, 0.75)}
    # What a run of theirs was made with before there was the option.
    del saved["added"]
    assert differing_options(saved, own) == {"added": (1, 7)}


def test_how_far_an_option_varies_is_one_of_three_words():
    with pytest.raises(ValueError, match='expected "resumed", "process" or "start", found \'resume\''):
        option(3, varies="resume")
