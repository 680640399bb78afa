"""A page to chat with packed models and teach them, and the relay that serves it on a desktop.

`page/` is what people see: on a phone inside the app of `android_demo/`, here in the browser. It
speaks `docs/workers.md` to its host; `relay.py` and the modules beside it are such a host.
"""
