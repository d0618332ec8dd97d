"""From a checkpoint to a verified, versioned bundle: item embeddings, FAISS index, publication."""
