"""``methods`` and ``models``: what there is."""

import click

from .show import debug_option, print_table


@click.command()
@debug_option
def methods(debug: bool) -> None:
    """List the methods: what each needs of a target and gives."""
    del debug
    import pushforward

    click.echo(repr(pushforward.methods()))


@click.command()
@debug_option
def models(debug: bool) -> None:
    """List the shipped models and their data."""
    del debug
    from ..models import get, names

    rows = []
    for name in names():
        example = get(name)
        fields = ", ".join(f"{field}{list(value.shape)}" for field, value in example.data.items())
        rows.append((name, example.about, fields))
    print_table(("model", "about", "data"), rows, numeric=False)
