"""Search and recommendation: catalogues, retrieval by a student's prompts, and how well it finds."""
