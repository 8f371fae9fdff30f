"""Private API of inductor: the base class of passes over its graphs (torch 2.5 and later).

In a file of its own because importing inductor takes a second, which only compiled steps need.
"""

from torch._inductor.custom_graph_pass import CustomGraphPass

__all__ = ["CustomGraphPass"]
