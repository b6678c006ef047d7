"""What is shown of a run while it goes on: bars, plain lines, nothing; and displays that fail."""

import io
import sys
import types

import pytest

import pushforward as pf
from pushforward.infer.run import observe
from pushforward.infer.run.observe import Progress, Seen
from tests.run.models import gaussian


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def seen(stage="sample", done=0, total=10, rate=2.0, **merit):
    return Seen(stage, done, total, rate, merit)


def run(**options):
    return pf.fit(gaussian(), **{"num_samples": 40, "num_warmup": 30, "num_chains": 2} | options)


@pytest.fixture
def stream(monkeypatch):
    """A log file in place of standard error, in a process that is no notebook."""
    return redirect(monkeypatch, io.StringIO())


def redirect(monkeypatch, stream, modules=()):
    # `sys` itself stays as it is: between set-up and test pytest puts its own stream there.
    monkeypatch.setattr(observe, "sys", types.SimpleNamespace(stderr=stream, modules=modules))
    return stream


def test_every_stage_of_a_fit_ends_with_one_line(stream):
    run(chunk_length=10)
    lines = stream.getvalue().splitlines()
    stages = [line.split()[0] for line in lines]
    assert len(stages) == len(set(stages)) >= 2
    assert stages[-1] == "sample"
    assert all("/s" in line and "acceptance" in line and "divergences" in line for line in lines)
    assert lines[-1].startswith("sample 40/40 ")
    assert "  0:00 left  " in lines[-1]


def test_an_optimiser_shows_its_objective(stream):
    run(method=pf.AutoGuide("AutoNormal", num_steps=50), num_chains=1)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("optimise 50/50 ")
    assert "elbo" in lines[0].lower()


def test_a_run_that_stops_early_leaves_a_line(stream):
    posterior = run(num_samples=100_000, max_evaluations=2000, chunk_length=20)
    assert "2000 evaluations" in posterior.record["stopped"]
    last = stream.getvalue().splitlines()[-1]
    assert last.startswith("sample ")
    assert "/100000 " in last
    assert not last.startswith("sample 100000/")


@pytest.mark.parametrize("make", [io.StringIO, Terminal])
def test_false_is_silent(make, monkeypatch, capsys):
    stream = redirect(monkeypatch, make())
    run(progress=False)
    assert stream.getvalue() == ""
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_lines_every_ten_seconds(stream, monkeypatch):
    clock = iter([0.0, 1.0, 9.9, 10.1, 12.0, 20.2, 20.3, 20.4, 21.0])
    lines = observe._Lines  # its clock is read once when made, and once per call
    monkeypatch.setattr(observe.time, "monotonic", lambda: next(clock))
    display = lines(stream)
    for done in (1, 2, 3, 4, 5, 10, 10):
        display.show(seen(done=done))
    display.show(seen("next", done=10))
    display.close()
    assert [line.split()[:2] for line in stream.getvalue().splitlines()] == [
        ["sample", "3/10"], ["sample", "5/10"], ["sample", "10/10"], ["next", "10/10"],
    ]  # fmt: skip


def test_what_a_line_says():
    text = observe.describe(seen(done=4, total=10, rate=0.001, divergences=3, elbo=-12.3456))
    assert text == "sample 4/10  0.001/s  1:40:00 left  divergences 3  elbo -12.35"
    assert observe.describe(seen(rate=0.0)).endswith("? left")


def test_a_terminal_has_a_bar_for_each_stage(monkeypatch):
    stream = redirect(monkeypatch, Terminal())
    run()
    shown = stream.getvalue()
    assert "warm-up" in shown
    assert "sample" in shown
    assert "sample" in shown  # in full, also at 80 columns
    assert "40/40" in shown
    assert "divergences 0" in shown
    assert "━" in shown


def test_a_failing_display_is_dropped_with_one_warning(monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise ValueError("I/O operation on closed file")

    redirect(monkeypatch, Closed())
    with pytest.warns(RuntimeWarning, match=r"display failed .*closed file") as caught:
        posterior = run()
    assert len(caught) == 1
    assert posterior.record["stopped"] is None
    assert posterior.draws()["x"].shape == (2, 40, 3)


def test_a_display_that_cannot_be_made_is_dropped_too(monkeypatch):
    redirect(monkeypatch, io.StringIO(), {"ipykernel"})
    monkeypatch.setitem(sys.modules, "IPython", None)
    monkeypatch.setitem(sys.modules, "IPython.display", None)
    with pytest.warns(RuntimeWarning, match="display failed") as caught:
        run()
    assert len(caught) == 1


def test_a_notebook_has_one_display_that_is_updated(monkeypatch):
    stream = redirect(monkeypatch, io.StringIO(), {"ipykernel"})
    shown = []

    class Handle:
        def update(self, what):
            shown.append(what)

    module = types.ModuleType("IPython.display")
    module.HTML = lambda text: text
    module.display = lambda what, display_id: Handle()
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    expect(monkeypatch)
    run()
    assert stream.getvalue() == ""
    last = shown[-1]
    assert last.startswith("<div>mixes [at once] &amp; &lt;well&gt;</div>")
    assert '<progress value="40" max="40">' in last
    assert last.count("<progress") == len({part.split()[0] for part in last.split("<code>")[1:]}) >= 2
    assert last.index("warm-up") < last.index("sample")


def test_not_more_than_ten_times_a_second(stream, monkeypatch):
    calls = []

    class Counting:
        def show(self, what):
            calls.append(what.done)

        def close(self):
            pass

    progress = Progress()
    progress._display = Counting()
    clock = iter([100.0, 100.05, 100.11, 100.12])
    monkeypatch.setattr(observe.time, "monotonic", lambda: next(clock))
    for done in (1, 2, 3):
        progress.show(seen(done=done))
    progress.show(seen(done=4), force=True)
    assert calls == [1, 3, 4]


def expect(monkeypatch):
    monkeypatch.setattr(pf.NUTS, "outlook", lambda self: "mixes [at once] & <well>")


def test_what_a_method_expects_is_said_before_the_first_iteration(stream, monkeypatch):
    expect(monkeypatch)
    run()
    first, *rest = stream.getvalue().splitlines()
    assert first == "mixes [at once] & <well>"
    assert not any("mixes" in line for line in rest)


def test_a_terminal_says_it_word_for_word(monkeypatch):
    stream = redirect(monkeypatch, Terminal())
    expect(monkeypatch)
    run()
    assert stream.getvalue().count("mixes [at once] & <well>") == 1
