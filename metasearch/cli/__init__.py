"""The command line: parses what a person typed, prints a table. Data go to stdout, talk to stderr.

Exit codes are those of `metasearch.cli.failures`; every error is one message without a traceback (`-v` shows it).
"""
from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextvars import copy_context
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
import typer.main

from metasearch import __version__
from metasearch.cli import compares, configs, doctors, looks, names, plans, policy, runs, stops, submits
from metasearch.cli.failures import FAILURE, INTERRUPTED, IO_ERROR, OK, TERMINATED, Stopped, Voice, judged, talk
from metasearch.cli.talking import Log, Quiet
from metasearch.signals import asking

__all__ = ["call", "main"]

app = typer.Typer(
    name="metasearch", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Distributed hyperparameter and architecture search for meta-learning.",
    epilog="Exit codes: 0 ok, 1 failure, 2 usage or configuration, 3 too many trials failed, 4 no trial succeeded, 65 bad data, "
           "69 service unavailable, 74 input/output, 75 try again, 130 interrupted, 143 terminated.",
)
app.command()(configs.init)
app.command()(plans.plan)
app.command()(doctors.doctor)
app.command()(runs.run)
app.command()(submits.submit)
app.command()(runs.resume)
app.command()(stops.stop)
app.command()(looks.status)
app.command()(looks.leaderboard)
app.command()(looks.show)
app.command()(compares.compare)
app.command()(looks.evaluate)
app.command()(looks.export)
app.command()(policy.policy)
app.command()(looks.sync)
app.command()(looks.clean)
app.command()(names.budget)
app.add_typer(configs.config, name="config")
app.add_typer(names.spaces, name="spaces")
app.add_typer(names.room("strategies", "What to try next"), name="strategies")
app.add_typer(names.room("learners", "How one episode is learnt"), name="learners")
app.add_typer(names.room("tasks", "What one problem is"), name="tasks")

_NOT_MIRRORED = {"version", "help", "install_completion", "show_completion"}
_verbose = False


def _version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _all(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks.")] = False,
    quiet: Quiet = False, log: Log = None,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    global _verbose
    _verbose = verbose


def main() -> NoReturn:
    """The entry point `metasearch`."""
    _open_what_is_closed()
    faulthandler.enable()
    code = call(sys.argv[1:])
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    sys.exit(code)


def _open_what_is_closed() -> None:
    """`metasearch run ... 2>&-`: what would be said goes nowhere, and no file of ours gets the number of a stream."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)  # Ray's processes have it, too
            setattr(sys, name, os.fdopen(number, mode))


def call(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code; never raises."""
    global _verbose
    _verbose = Voice.quiet = Voice.as_json = False
    caught: list[int] = []
    try:
        with _signals(caught):
            command = _mirrored(typer.main.get_command(app), "METASEARCH")
            # in a context of its own: the home lived in ends with the command
            answer = copy_context().run(command, list(arguments), standalone_mode=False)
        if answer == INTERRUPTED and caught:  # typer makes a number of KeyboardInterrupt
            return _stopped(caught[0])
        return answer if isinstance(answer, int) else OK
    except KeyboardInterrupt:
        return _stopped(caught[0] if caught else signal.SIGINT)
    except typer.TyperException as error:
        return _misused(error)
    except typer.Exit as error:
        return error.exit_code
    except typer.Abort:
        return INTERRUPTED
    except SystemExit as error:  # typer's own, of a closed pipe
        return error.code if isinstance(error.code, int) else FAILURE
    except BrokenPipeError:  # the reader of our stdout has seen enough: `metasearch leaderboard | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return IO_ERROR
    except BaseException as error:
        code, message = judged(error)
        if _verbose:
            talk("".join(traceback.format_exception(error)), "error")
        talk(f"metasearch: {message}", "error", exit_code=code)
        return code


def _mirrored(command: Any, prefix: str) -> Any:
    """Every option is also a variable, named by the command and the option: `plan --gpu-hour` is METASEARCH_PLAN_GPU_HOUR. An
    option comes first. Those that do something else than the command (--version, --help), or that are hidden, have none."""
    for option in command.params:
        if option.param_type_name == "option" and not option.hidden and option.name not in _NOT_MIRRORED and not option.envvar:
            long = max(option.opts, key=len).lstrip("-")
            option.envvar, option.show_envvar = f"{prefix}_{long}".upper().replace("-", "_"), True
    for name, inner in getattr(command, "commands", {}).items():
        _mirrored(inner, f"{prefix}_{name}")
    return command


def _misused(error: typer.TyperException) -> int:
    """A wrong option or argument, or none where some are needed (then the message is the help)."""
    helpful = type(error).__name__ == "NoArgsIsHelpError"
    context = getattr(error, "ctx", None)
    talk(error.format_message() if helpful else f"metasearch: {error.format_message()}", "error", exit_code=error.exit_code)
    if context is not None and not helpful:
        talk(f"More: {context.command_path} --help", "error")
    return error.exit_code


def _stopped(number: int) -> int:
    code, said = (INTERRUPTED, "interrupted") if number == signal.SIGINT else (TERMINATED, "terminated")
    talk(f"metasearch: {said}", "error", exit_code=code)
    return code


@contextlib.contextmanager
def _signals(caught: list[int]) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP once: everything cleans up; twice: at once. While a study runs, the driver is asked first."""

    def stop(number: int, frame: FrameType | None) -> None:
        if caught:
            os._exit(INTERRUPTED if number == signal.SIGINT else TERMINATED)
        caught.append(number)
        raise Stopped

    try:
        before = {number: signal.signal(number, stop) for number in asking()}
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
