"""Three sentences, their similarities and five components, with the real model."""

from minifuse import SentenceTransformer

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "A fast brown fox leaps over a sleepy dog.",
    "The sky is blue.",
]

model = SentenceTransformer("sentence-transformers/all-MiniLM-L6-v2")
embeddings = model.encode(SENTENCES)
similarities = model.similarity(embeddings, embeddings)

print(model)
for i, j in ((0, 1), (0, 2), (1, 2)):
    print(f"{similarities[i, j]:.4f}  {SENTENCES[i]!r} ~ {SENTENCES[j]!r}")
print("first five components of the first:", " ".join(f"{x:.4f}" for x in embeddings[0, :5]))
