"""Tables in Markdown."""


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [
        " | ".join(head),
        " | ".join(["---"] + ["---:"] * (len(head) - 1)),
        *(" | ".join(row) for row in rows),
    ]
    return "\n".join(f"| {line} |" for line in lines)
