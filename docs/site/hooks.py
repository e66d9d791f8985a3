"""What the site shows beside docs/: files that its pages link to, and a page for every module.

A file of the repository outside docs/ is shown under repository/. Links are written for readers of
the repository, and turned here to where a page or file lies in the site.
"""

import ast
import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\((?!https?://|mailto:|#)([^)\s#]+)(#[^)\s]*)?\)")


def source(uri: str) -> str:
    """Where in the repository a page of the site comes from."""
    return uri.removeprefix("repository/") if uri.startswith("repository/") else f"docs/{uri}"


def place(path: str) -> str:
    """Where in the site a file of the repository lies."""
    return path.removeprefix("docs/") if path.startswith("docs/") else f"repository/{path}"


def on_files(files, config):
    """Add the linked files, whatever adding a page brings in its turn, and the reference."""
    waiting = [file.src_uri for file in files.documentation_pages()] + ["repository/README.md"]
    seen = set(files.src_uris)
    while waiting:
        uri = waiting.pop()
        file = ROOT / source(uri)
        if uri not in seen:
            seen.add(uri)
            files.append(File.generated(config, uri, abs_src_path=str(file)))
        if file.suffix == ".md":
            links = [
                join(dirname(source(uri)), link[1]) for link in LINK.finditer(file.read_text())
            ]
            found = [normpath(link) for link in links]
            waiting += [place(f) for f in found if (ROOT / f).is_file() and place(f) not in seen]
    modules = {}
    for path in sorted((ROOT / "jaxrec").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if "__main__" not in name:
            text = ast.get_docstring(ast.parse(path.read_text())) or ""
            first = text.partition("\n")[0]
            command = "python -m" in first  # its words in brackets are no links
            modules[name] = first.replace("[", r"\[") if command else first
            told = f"```text\n{text}\n```" if command else f"::: {name}"
            page = f"# {name}\n\n{told}\n"
            files.append(File.generated(config, f"reference/{name}.md", content=page))
    lines = [f"- [`{name}`]({name}.md): {text}" for name, text in modules.items()]
    page = "\n".join(["# Reference", "", "Made from the docstrings.", "", *lines, ""])
    files.append(File.generated(config, "reference/index.md", content=page))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turn a page's links to where their targets lie; a link to a folder becomes its text."""
    uri = page.file.src_uri
    if uri.startswith("reference/"):
        return markdown
    markdown = re.sub(
        r"\[([^\]]*)\](\([^)\s]+\))",
        lambda m: m[1] if _is_folder(m[2], uri) else m[0],
        markdown,
    )
    return LINK.sub(lambda m: f"]({_turned(m[1], uri)}{m[2] or ''})", markdown)


def _is_folder(link: str, uri: str) -> bool:
    found = LINK.fullmatch("]" + link)
    return bool(found) and (ROOT / normpath(join(dirname(source(uri)), found[1]))).is_dir()


def _turned(link: str, uri: str) -> str:
    target = place(normpath(join(dirname(source(uri)), link)))
    return relpath(target, dirname(uri) or ".")
