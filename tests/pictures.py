"""Pictures with metadata, as photo programs write them."""

from __future__ import annotations

from collections.abc import Collection
from xml.sax.saxutils import escape


def xmp(title: str, keywords: Collection[str]) -> bytes:
    """An XMP packet with a Dublin Core title and keywords."""
    words = "".join(f"<rdf:li>{escape(word)}</rdf:li>" for word in keywords)
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/">'
        f'<dc:title><rdf:Alt><rdf:li xml:lang="x-default">{escape(title)}</rdf:li></rdf:Alt></dc:title>'
        f"<dc:subject><rdf:Bag>{words}</rdf:Bag></dc:subject></rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode()
