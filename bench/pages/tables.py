"""Tables in Markdown, and what they were measured on."""


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [
        " | ".join(head),
        " | ".join(["---"] + ["---:"] * (len(head) - 1)),
        *(" | ".join(row) for row in rows),
    ]
    return "\n".join(f"| {line} |" for line in lines)


def where(results: dict) -> str:
    """The line that says on what a table was measured."""
    m = results["machine"]
    return (
        f"Measured with `{results['command']}` on {m['date']}: {m['cpu']}, {m['threads']} threads "
        f"({m['cpu capability']}), GPU {m['gpu']}, Python {m['python']}, torch {m['torch']}, commit {m['commit']}."
    )
