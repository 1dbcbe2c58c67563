"""`lipdeploy doctor`."""

import typer

from lipdeploy.cli import options
from lipdeploy.report.console import print_json


def doctor(
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Check the environment: packages, engines, GPU, room; say what to do where something fails.

    A line an item: ok, note (worth knowing), missing (only some commands need it) or problem.
    Exit status 1 if there is a problem.

    Example: lipdeploy doctor --json
    """
    from lipdeploy.doctor import examine
    from lipdeploy.report.doctor import doctor_summary, problems, write_item, write_verdict

    items = []
    for item in examine():
        items.append(item)
        if not as_json:
            write_item(item)
    if as_json:
        print_json(doctor_summary(items))
    else:
        write_verdict(items)
    if problems(items):
        raise typer.Exit(1)
