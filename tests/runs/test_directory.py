import signal
from dataclasses import field
from types import SimpleNamespace

import pytest
import torch
import yaml

from peftkit.config.keys import section
from peftkit.config.train import TrainSettings
from peftkit.errors import ConfigError
from peftkit.metrics.measurement import Measurement
from peftkit.runs.directory import Run
from peftkit.runs.report import write_report
from peftkit.training.metrics_log import MetricsLog, read_metrics
from peftkit.training.progress_line import ProgressLine


@section
class Config:
    """A recipe's config."""

    run_dir: str
    seed: int = 0
    train: TrainSettings = field(default_factory=TrainSettings)


def begun(directory, **changes):
    run = Run(Config(run_dir=str(directory), **changes))
    run.begin()
    return run


def test_a_run_freezes_its_config_and_says_what_it_runs_on(tmp_path):
    run = begun(tmp_path)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["train"]["learning_rate"] == 2e-4
    assert {"packages", "threads", "gpu"} <= run.remembered("environment").keys()


def test_an_attempt_that_failed_before_its_first_checkpoint_does_not_hold_the_directory(tmp_path):
    begun(tmp_path).remember("before", {"loss": 1.5})
    assert begun(tmp_path, seed=1).remembered("before") is None


def test_a_used_run_directory_is_refused_unless_its_run_is_resumed(tmp_path):
    begun(tmp_path).remember("after", {"metrics": {}})
    begun(tmp_path, train=TrainSettings(trackers=["tensorboard"]))
    with pytest.raises(
        ConfigError, match=r"differs in seed, train\.batch_size; choose another run_dir"
    ):
        begun(tmp_path, seed=1, train=TrainSettings(batch_size=2))
    with pytest.raises(ConfigError, match="holds a run already"):
        begun(tmp_path, train=TrainSettings(resume="never"))


def test_what_a_run_remembers_is_there_when_it_is_resumed(tmp_path):
    run = begun(tmp_path)
    run.remember("after", {"metrics": {}})
    assert run.remembered("before") is None
    assert run.remember("before", {"loss": 1.5}) == {"loss": 1.5}
    assert begun(tmp_path).remembered("before") == {"loss": 1.5}


def test_a_resumed_log_drops_cut_lines_and_lines_after_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    assert len(read_metrics(path)) == 3
    MetricsLog(path, SimpleNamespace(is_main_process=True, trackers=[])).start(2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_the_progress_line_shows_step_time_loss_rate_speed_and_memory(capsys):
    line = ProgressLine(10, True)
    for step in range(1, 11):
        line.show(step, {"loss": 2.0, "learning_rate": 1e-3, "items": 50}, seconds=0.5 * step)
    last = capsys.readouterr().err.splitlines()[-1]
    for part in (
        "step 10/10",
        "left 00:00:00",
        "loss 2.0000",
        "lr 1.00e-03",
        "100 tokens/s",
        "GiB",
    ):
        assert part in last


def test_the_report_shows_before_and_after(tmp_path):
    begun(tmp_path)
    log = MetricsLog(tmp_path / "metrics.jsonl", SimpleNamespace(is_main_process=True, trackers=[]))
    log.start(0)
    for step in range(1, 5):
        log.write(step, "train", {"loss": 4.0 / step, "items": 10, "seconds": 15.0 * step})
    log.write(4, "evaluation", {"loss": 1.2})
    measured = {
        "before": Measurement({"loss": 3.0}, ["no <idea>"]),
        "after": Measurement({"loss": 1.25, "right": 1}, ["£3.95"]),
    }
    asked = [("how | much?", "£3.95")]
    text = write_report(tmp_path, "Title", measured, asked, remarks=["A remark."]).read_text()
    for part in (
        "# Title",
        "| loss | 3 | 1.25 |",
        "4 steps over 40 supervised items in 1.0 minutes",
        "A remark.",
        "Python 3",
    ):
        assert part in text
    assert "| how \\| much? | no &lt;idea> | £3.95 | £3.95 |" in text
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_that_resumes_a_run_is_the_typed_one(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTKIT_COMMAND", "peftkit train chat --config my.yaml")
    assert begun(tmp_path).resume_command() == "peftkit train chat --config my.yaml"


def test_the_command_that_resumes_a_run_overrides_train_resume_never(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTKIT_COMMAND", "peftkit train chat --config my.yaml")
    command = begun(tmp_path, train=TrainSettings(resume="never")).resume_command()
    assert command == "peftkit train chat --config my.yaml --train.resume auto"


def test_beginning_a_run_changes_nothing_for_the_process(tmp_path):
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGINT)
    state = torch.get_rng_state()
    begun(tmp_path)
    assert torch.get_num_threads() == threads
    assert signal.getsignal(signal.SIGINT) is handler
    assert torch.equal(torch.get_rng_state(), state)


def test_what_a_run_sets_for_its_process_is_written_down(tmp_path):
    run = Run(Config(run_dir=str(tmp_path)))
    run.begin(["CPU threads: 2"])
    assert run.remembered("environment")["process"] == ["CPU threads: 2"]
