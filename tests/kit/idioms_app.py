from bgmiddleware import BackgroundMiddleware, marks
from bgmiddleware.registries.spool import SpoolRegistry
from tests.kit import idioms
import os

app = BackgroundMiddleware(idioms.app, when=marks.always, registry=SpoolRegistry(os.environ["IDIOMS_SPOOL"]))
