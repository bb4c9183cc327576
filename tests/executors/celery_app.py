"""A Celery of somebody who runs short tasks: what can be wrong for long jobs is. Its broker is in CELERY_BROKER_URL."""

from celery import Celery

app = Celery("shop")
app.conf.update(
    accept_content=["json", "pickle"],
    task_serializer="pickle",
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_time_limit=1,
    task_soft_time_limit=1,
    task_track_started=True,
    task_create_missing_queues=False,
    task_default_queue="short",
    worker_prefetch_multiplier=4,
    worker_pool="threads",
    worker_redirect_stdouts=True,
)
