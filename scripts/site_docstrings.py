"""For the documentation site: which names are public, and docstrings in which doctests are shown as code."""

from __future__ import annotations

import griffe


class PublicNames(griffe.Extension):
    """Rewrites each docstring that is read, and hides what a package does not export."""

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        """After an object was read from its source."""
        if obj.docstring:
            obj.docstring.value = fence(obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, **_: object) -> None:
        """After all of caltune was read: of a module from which its package exports names, only these are public."""
        for folder in (one for one in pkg.modules.values() if one.is_subpackage and one.exports):
            for module in folder.modules.values():
                own = [one for one in module.members.values() if not one.is_alias and (one.is_function or one.is_class)]
                if module.exports is None and any(one.name in folder.exports for one in own):
                    for one in own:
                        one.public = one.name in folder.exports


def fence(text: str) -> str:
    """The text as Markdown: each run of lines from `>>>` to the next empty line between fences.

    >>> fence("One:\\n\\n>>> 1 + 1\\n2\\n\\nTwo.").splitlines()
    ['One:', '', '```pycon', '>>> 1 + 1', '2', '```', '', 'Two.']
    """
    lines: list[str] = []
    inside = False
    for line in [*text.splitlines(), ""]:
        begins, ends = not inside and line.startswith(">>> "), inside and not line.strip()
        if begins:
            lines.append("```pycon")
        if ends:
            lines.append("```")
        inside = (inside or begins) and not ends
        # A* is a quantity, not the beginning of emphasis; what is indented is code and shown as it is.
        lines.append(line if inside or line.startswith("    ") else line.replace("A*", r"A\*"))
    return "\n".join(lines[:-1])
