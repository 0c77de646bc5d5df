"""From text to batches: corpora, tokenizer, MindRecord rows, sampling, loading."""
