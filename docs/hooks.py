"""Hooks of the documentation's build: mathematics, and a check of the reference."""

import html
import logging
import re
from pathlib import Path

import griffe
from math_core import LatexToMathML

LOG = logging.getLogger("mkdocs.hooks.jaxae")  # below "mkdocs": strict builds count it
DISPLAY = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)
INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
ANCHOR = re.compile(r'id="(jaxae\.[\w.]+)"')
HIDDEN = ("_", "checked_")  # as `filters` in mkdocs.yml
PAGES = Path(__file__).parent / "reference"

_CONVERTER = LatexToMathML()
_anchors: set[str] = set()


def on_pre_build(**_):
    """Forget the anchors of an earlier build."""
    _anchors.clear()


def on_page_content(content, **_):
    """Replace TeX by MathML, which browsers draw without a script or a network."""
    _anchors.update(ANCHOR.findall(content))
    content = DISPLAY.sub(lambda tex: _mathml(tex[1], displaystyle=True), content)
    return INLINE.sub(lambda tex: _mathml(tex[1], displaystyle=False), content)


def on_post_build(**_):
    """Warn of public functions and classes that the reference does not show."""
    root = str(PAGES.parents[1])
    package = griffe.load("jaxae", search_paths=[root], resolve_aliases=True)
    shown = {_definition(package, path) for path in _anchors}
    pages = sorted(page.stem for page in PAGES.glob("*.md"))
    modules = [package, *(package[page] for page in pages if page in package.members)]
    for path in sorted({path for module in modules for path in _public(module)}):
        if path not in shown:
            LOG.warning("%s has no docstring, or no reference page shows it.", path)


def _mathml(tex, *, displaystyle):
    tex = html.unescape(tex).strip()
    return _CONVERTER.convert_with_local_state(tex, displaystyle=displaystyle)


def _definition(package, path):
    """Where an object is defined, by a path from which it can be imported."""
    name = path.removeprefix("jaxae.")
    return package.canonical_path if name == "jaxae" else package[name].canonical_path


def _public(module):
    """Where the functions, classes and methods that a module exports are defined."""
    for name, member in module.members.items():
        is_exported = name in module.exports if module.exports else _is_own(member)
        if not is_exported:
            continue
        target = member.final_target if member.is_alias else member
        if target.is_module and name in target.members:
            target = target[name]  # a function named as its module: gradcheck.precision
        if target.is_function or target.is_class:
            yield target.canonical_path
        if target.is_class:
            for method in target.members.values():
                if method.is_function and not method.name.startswith(HIDDEN):
                    yield method.canonical_path


def _is_own(member):
    return not member.is_alias and not member.name.startswith("_")
