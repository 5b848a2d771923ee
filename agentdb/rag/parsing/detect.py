"""Which kind of document a file is: by its first bytes where they tell, else by its name, else by its text."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import PurePath

from agentdb.rag.parsing.archives import BROKEN
from agentdb.rag.parsing.text import wide_encoding

__all__ = [
    "CODE_LANGUAGES",
    "detect_media_type",
    "is_image",
    "language_of",
    "looks_binary",
    "media_type_of_name",
    "sniff",
]

DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
PPTX = "application/vnd.openxmlformats-officedocument.presentationml.presentation"
XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
EPUB = "application/epub+zip"
NOTEBOOK = "application/x-ipynb+json"
OLE = "application/x-ole-storage"

CODE_LANGUAGES = {
    "bash": "sh bash zsh bashrc zshrc profile",
    "batch": "bat cmd",
    "c": "c h",
    "clojure": "clj cljs cljc edn",
    "cmake": "cmake",
    "cpp": "cc cpp cxx c++ hh hpp hxx h++ ipp inl cu cuh",
    "csharp": "cs csx",
    "css": "css scss sass less",
    "dart": "dart",
    "dockerfile": "dockerfile containerfile",
    "elixir": "ex exs",
    "erlang": "erl hrl",
    "fortran": "f f90 f95 f03 f08",
    "fsharp": "fs fsi fsx",
    "go": "go",
    "graphql": "graphql gql",
    "groovy": "groovy gradle",
    "haskell": "hs lhs",
    "hcl": "tf hcl tfvars",
    "ini": "ini cfg conf properties editorconfig gitconfig env",
    "java": "java",
    "javascript": "js mjs cjs jsx",
    "julia": "jl",
    "kotlin": "kt kts",
    "latex": "tex sty cls bib",
    "lisp": "lisp el scm rkt",
    "lua": "lua",
    "makefile": "makefile gnumakefile mk mak",
    "matlab": "m",
    "nix": "nix",
    "ocaml": "ml mli",
    "pascal": "pas pp",
    "perl": "pl pm",
    "php": "php",
    "powershell": "ps1 psm1 psd1",
    "protobuf": "proto",
    "python": "py pyi pyw pyx pxd",
    "r": "r",
    "ruby": "rb rake gemfile rakefile gemspec",
    "rust": "rs",
    "scala": "scala sc",
    "sql": "sql ddl",
    "svelte": "svelte",
    "swift": "swift",
    "toml": "toml",
    "tsx": "tsx",
    "typescript": "ts mts cts",
    "vim": "vim",
    "vue": "vue",
    "xml": "xml xsd xsl xslt svg rss atom plist wsdl",
    "yaml": "yaml yml",
    "zig": "zig",
}
"""Languages and the endings (or whole names) of their files."""

_LANGUAGE_OF_ENDING = {ending: language for language, endings in CODE_LANGUAGES.items() for ending in endings.split()}
_OWN_TYPES = {"css": "text/css", "javascript": "text/javascript", "xml": "text/xml"}
_TYPE_OF_ENDING = {
    **{ending: _OWN_TYPES.get(language, f"text/x-{language}") for ending, language in _LANGUAGE_OF_ENDING.items()},
    **dict.fromkeys(
        ("txt", "text", "log", "rst", "asc", "adoc", "org", "srt", "vtt", "readme", "license"), "text/plain"
    ),
    **dict.fromkeys(("md", "markdown", "mdown", "mkd", "mdx"), "text/markdown"),
    **dict.fromkeys(("html", "htm", "xhtml", "xht"), "text/html"),
    "csv": "text/csv",
    **dict.fromkeys(("tsv", "tab"), "text/tab-separated-values"),
    **dict.fromkeys(("json", "geojson", "webmanifest"), "application/json"),
    **dict.fromkeys(("jsonl", "ndjson"), "application/x-ndjson"),
    "ipynb": NOTEBOOK,
    "pdf": "application/pdf",
    **dict.fromkeys(("docx", "docm", "dotx"), DOCX),
    **dict.fromkeys(("pptx", "pptm", "potx", "ppsx"), PPTX),
    **dict.fromkeys(("xlsx", "xlsm", "xltx"), XLSX),
    "epub": EPUB,
    **dict.fromkeys(("doc", "dot", "xls", "ppt", "msg"), OLE),
    "png": "image/png",
    **dict.fromkeys(("jpg", "jpeg", "jpe"), "image/jpeg"),
    "gif": "image/gif",
    "webp": "image/webp",
    **dict.fromkeys(("tif", "tiff"), "image/tiff"),
    "bmp": "image/bmp",
    "avif": "image/avif",
}
_INTERPRETERS = {"python": "python", "sh": "bash", "node": "javascript", "perl": "perl", "ruby": "ruby", "php": "php"}
_HTML = re.compile(rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE)
_BOMS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")
# What no text holds; tabs, line ends, form feeds, backspaces and the escapes of terminals do occur.
_CONTROLS = bytes(code for code in range(32) if code not in b"\t\n\r\f\b\x1b")
_SAMPLE = 8_192


def language_of(media_type: str) -> str | None:
    """Return the language of a media type of source code, or None."""
    for language, own in _OWN_TYPES.items():
        if media_type == own:
            return language
    language = media_type.removeprefix("text/x-")
    return language if language != media_type and language in CODE_LANGUAGES else None


def is_image(media_type: str) -> bool:
    """Return whether the media type is that of a picture."""
    return media_type.startswith("image/")


def media_type_of_name(name: str | None) -> str | None:
    """Return what the ending of a name says, or None."""
    if not name:
        return None
    last = PurePath(name.replace("\\", "/")).name.lower()
    for ending in (last.rpartition(".")[2], last.partition(".")[0]):
        if ending in _TYPE_OF_ENDING:
            return _TYPE_OF_ENDING[ending]
    return None


def sniff(data: bytes) -> str | None:
    """Return what the first bytes prove the file to be, or None where they prove nothing."""
    head = data[:1_024]
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_archive(data)
    if b"%PDF-" in head:
        return "application/pdf"
    if head.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        return OLE
    for magic, found in (
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"\xff\xd8\xff", "image/jpeg"),
        (b"GIF87a", "image/gif"),
        (b"GIF89a", "image/gif"),
        (b"II*\0", "image/tiff"),
        (b"MM\0*", "image/tiff"),
    ):
        if head.startswith(magic):
            return found
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    if head[4:12] in (b"ftypavif", b"ftypavis"):
        return "image/avif"
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0" and int.from_bytes(head[2:6], "little") <= len(data) + 4:
        return "image/bmp"
    return None


def looks_binary(data: bytes) -> bool:
    """Return whether the beginning of the data is no text in any common encoding."""
    sample = data[:_SAMPLE]
    if not sample or sample.startswith(_BOMS):
        return False
    if b"\0" in sample:
        # UTF-16 and UTF-32 without a mark have NULs in one place of every two or four.
        is_wide = wide_encoding(data) is not None
        return not is_wide and (len(sample.translate(None, _CONTROLS)) < 0.98 * len(sample) or sample.count(0) > 8)
    return len(sample.translate(None, _CONTROLS)) < 0.95 * len(sample)


def detect_media_type(name: str | None, data: bytes) -> str | None:
    """Return the media type of a file, or None if it is of no kind that can be read.

    What the first bytes prove goes before what the name says.
    """
    found = sniff(data)
    if found is not None:
        return found
    if looks_binary(data):
        return None
    named = media_type_of_name(name)
    if named is not None and (named.startswith("text/") or "json" in named) and named != "text/plain":
        return named
    if _HTML.match(data[:_SAMPLE].removeprefix(_BOMS[0])):
        return "text/html"
    if named is None and data.startswith(b"#!"):
        first = data[:200].split(b"\n", 1)[0].decode("latin-1")
        for interpreter, language in _INTERPRETERS.items():
            if re.search(rf"\b(?:ba|z|da)?{interpreter}[\d.]*\b", first):
                return _OWN_TYPES.get(language, f"text/x-{language}")
    return "text/plain"


def _kind_of_archive(data: bytes) -> str | None:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            if "mimetype" in names and archive.getinfo("mimetype").file_size < 100:
                with archive.open("mimetype") as member:
                    if member.read(100).strip() == EPUB.encode():
                        return EPUB
    except BROKEN:
        return "application/zip"
    if "META-INF/container.xml" in names and any(one.endswith(".opf") for one in names):
        return EPUB
    for folder, found in (("word/", DOCX), ("ppt/", PPTX), ("xl/", XLSX)):
        if "[Content_Types].xml" in names and any(one.startswith(folder) for one in names):
            return found
    return "application/zip"
