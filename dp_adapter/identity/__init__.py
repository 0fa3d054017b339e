"""From photographs to identities: read pictures, find faces, embed, parse and combine them.

Importing this package imports nothing heavy; its modules need numpy, and cv2, onnxruntime,
insightface and transformers only when the network at hand is first run.
"""
