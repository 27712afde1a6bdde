"""The front server: public HTTP APIs, the model store and the command line."""
