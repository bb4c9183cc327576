"""What the engines share: ``engine`` submits keys to RQ or Celery, ``worker`` runs a stored job at the other end.

``sites`` loads the app that a worker runs; the child processes of :mod:`~bgmiddleware.executors.process` use it too.
"""
