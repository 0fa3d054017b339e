"""DP-Adapter: a person's identity in the face, the prompt everywhere else.

Importing this package imports nothing else: the WebUI starts no slower, and every heavy
package is imported on first use.
"""

__version__ = "0.1.0"
