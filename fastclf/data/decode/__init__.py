"""From encoded images to batches: DALI graphs, the native renderer, the child process that decodes unknown files."""
