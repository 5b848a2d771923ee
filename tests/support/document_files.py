"""Small files of the formats that documents come in, made here, so that none is kept in the repository."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

PNG = b"\x89PNG\r\n\x1a\n" + b"".join(
    struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    for kind, data in (
        (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0\xff\0\0")),
        (b"IEND", b""),
    )
)
"""One red pixel."""


def pdf(pages, *, outline=(), info=None, images=()):
    """Return a PDF.

    Args:
        pages: for each page its lines: (text, size, x, y), y from the bottom; "\\xad" at the end divides a word.
        outline: (title, level from 0, page from 0).
        info: entries of the information dictionary.
        images: for each page, in turn, (width, height, RGB bytes) or None.
    """
    objects = [b""]  # numbered from 1

    def add(body):
        objects.append(body if isinstance(body, bytes) else body.encode("latin-1"))
        return len(objects) - 1

    def stream(head, data):
        packed = zlib.compress(data)
        return f"<< {head} /Filter /FlateDecode /Length {len(packed)} >>\nstream\n".encode() + packed + b"\nendstream"

    def quoted(text):
        return "(" + text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)") + ")"

    catalog, root = add(""), add("")
    font = add("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>")
    kids = []
    for number, lines in enumerate(pages):
        drawn = "".join(f"BT /F1 {size} Tf {x} {y} Td {quoted(text)} Tj ET\n" for text, size, x, y in lines)
        resources = f"/Font << /F1 {font} 0 R >>"
        image = images[number] if number < len(images) else None
        if image:
            width, height, data = image
            shape = f"/Type /XObject /Subtype /Image /Width {width} /Height {height} /ColorSpace /DeviceRGB"
            picture = add(stream(f"{shape} /BitsPerComponent 8", data))
            resources += f" /XObject << /Im1 {picture} 0 R >>"
            drawn += f"q {width} 0 0 {height} 100 100 cm /Im1 Do Q\n"
        content = add(stream("", drawn.encode("cp1252")))
        kids.append(
            add(
                f"<< /Type /Page /Parent {root} 0 R /MediaBox [0 0 612 792] /Contents {content} 0 R "
                f"/Resources << {resources} >> >>"
            )
        )
    objects[root] = f"<< /Type /Pages /Count {len(kids)} /Kids [{' '.join(f'{kid} 0 R' for kid in kids)}] >>".encode()
    outlines = ""
    if outline:
        outlines = f"/Outlines {_outline(outline, kids, objects, add, quoted)} 0 R"
    objects[catalog] = f"<< /Type /Catalog /Pages {root} 0 R {outlines} >>".encode()
    told = "".join(f"/{name} {quoted(value)} " for name, value in (info or {}).items())
    described = add(f"<< {told}>>")
    out = io.BytesIO()
    out.write(b"%PDF-1.7\n")
    places = []
    for number, body in enumerate(objects[1:], 1):
        places.append(out.tell())
        out.write(f"{number} 0 obj\n".encode() + body + b"\nendobj\n")
    start = out.tell()
    out.write(f"xref\n0 {len(objects)}\n0000000000 65535 f \n".encode())
    out.write("".join(f"{place:010d} 00000 n \n" for place in places).encode())
    out.write(
        f"trailer\n<< /Size {len(objects)} /Root {catalog} 0 R /Info {described} 0 R >>\nstartxref\n{start}\n%%EOF".encode()
    )
    return out.getvalue()


def _outline(entries, kids, objects, add, quoted):
    root = add("")
    numbers = [add("") for _ in entries]
    parents, last = [], {-1: root}
    for (_, level, _), number in zip(entries, numbers, strict=True):
        parents.append(last[level - 1])
        last[level] = number
    for place, (title, _, page) in enumerate(entries):
        siblings = [number for number, parent in zip(numbers, parents, strict=True) if parent == parents[place]]
        children = [number for number, parent in zip(numbers, parents, strict=True) if parent == numbers[place]]
        at = siblings.index(numbers[place])
        body = f"<< /Title {quoted(title)} /Parent {parents[place]} 0 R /Dest [{kids[page]} 0 R /Fit]"
        body += f" /Next {siblings[at + 1]} 0 R" if at + 1 < len(siblings) else ""
        body += f" /Prev {siblings[at - 1]} 0 R" if at else ""
        body += f" /First {children[0]} 0 R /Last {children[-1]} 0 R /Count {len(children)}" if children else ""
        objects[numbers[place]] = f"{body} >>".encode("latin-1")
    top = [number for number, parent in zip(numbers, parents, strict=True) if parent == root]
    objects[root] = f"<< /Type /Outlines /First {top[0]} 0 R /Last {top[-1]} 0 R /Count {len(top)} >>".encode()
    return root


def archive(members, *, compression=zipfile.ZIP_DEFLATED):
    """Return a zip archive of (name, content) pairs."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as target:
        for name, content in members.items():
            target.writestr(name, content)
    return out.getvalue()


def epub(chapters, *, title="A book", author="Ann", extra=None):
    """Return a book of chapters, each the inside of a body."""
    items = "".join(
        f'<item id="c{n}" href="text/c{n}.xhtml" media-type="application/xhtml+xml"/>' for n in range(len(chapters))
    )
    spine = "".join(f'<itemref idref="c{n}"/>' for n in range(len(chapters)))
    members = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
        '<rootfile full-path="OEBPS/book.opf"/></rootfiles></container>',
        "OEBPS/book.opf": '<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/">'
        f"<metadata><dc:title>{title}</dc:title><dc:creator>{author}</dc:creator></metadata>"
        f"<manifest>{items}</manifest><spine>{spine}</spine></package>",
    }
    for number, body in enumerate(chapters):
        members[f"OEBPS/text/c{number}.xhtml"] = (
            '<?xml version="1.0" encoding="utf-8"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title>t</title>'
            f"</head><body>{body}</body></html>"
        )
    return archive(members | (extra or {}))


def docx(build):
    """Return a Word document after ``build(document)``."""
    from docx import Document

    document = Document()
    build(document)
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def pptx(build):
    """Return a presentation after ``build(presentation)``."""
    from pptx import Presentation

    presentation = Presentation()
    build(presentation)
    out = io.BytesIO()
    presentation.save(out)
    return out.getvalue()


def xlsx(sheets):
    """Return a workbook of {name: rows}."""
    from openpyxl import Workbook

    book = Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()
