"""Upgrades of files of vectors, where the vectors are: by h and g as ONNX, without the service, a database or torch.

It imports onnxruntime, numpy, pyarrow and typer, faiss where a file is one of FAISS, and of this repository only
`models.durable`, which is standard library.
"""
