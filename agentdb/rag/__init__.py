"""From files to a cited context: parse, chunk, embed, retrieve, rerank, pack."""
