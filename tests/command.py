"""The command line in this process."""

from typer.testing import CliRunner, Result

from pluralllm_fl.cli import app


def invoke(*arguments: object, columns: int = 250) -> Result:
    """Run `pluralllm` on a terminal of that width; it may refuse, but never with a traceback."""
    result = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": str(columns)})
    assert "Traceback" not in result.output
    return result
