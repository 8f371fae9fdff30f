"""Private API of inductor: the base class of passes over its graphs (torch 2.5 and later).

It is in a separate file because importing inductor takes a second, and only compiled steps need it.
"""

from torch._inductor.custom_graph_pass import CustomGraphPass

__all__ = ["CustomGraphPass"]
