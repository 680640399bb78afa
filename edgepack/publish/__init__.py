"""An output folder as a repository of the Hugging Face Hub.

Takes a folder that edgepack wrote; checks that it is what was written and names nothing of this
machine; gives the address of a commit. May import core, checkpoint and what they may.
"""
