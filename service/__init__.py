"""The online recall service: HTTP, sequence store, batcher, engine, bundle reloading."""
