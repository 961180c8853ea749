"""Build hooks of the documentation: mathematics, and a check of public docstrings."""

import html
import logging
import re

import griffe
from math_core import LatexToMathML

LOG = logging.getLogger("mkdocs.hooks.jaxae")
INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
DISPLAY = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


def on_page_content(content, **_):
    """Replace TeX by MathML, which browsers lay out without scripts or a network."""
    content = DISPLAY.sub(lambda tex: mathml(tex[1], displaystyle=True), content)
    return INLINE.sub(lambda tex: mathml(tex[1], displaystyle=False), content)


def mathml(tex, *, displaystyle):
    converter = LatexToMathML()
    return converter.convert_with_local_state(
        html.unescape(tex).strip(), displaystyle=displaystyle
    )
