"""A page with a camera, a REST interface and a stream of frames, on Starlette (the extra `serve`).

`run.serve` runs the server, `app.make_app` makes the ASGI application alone.
"""
