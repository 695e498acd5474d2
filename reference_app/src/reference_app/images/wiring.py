"""What this domain is made of, from the settings; nothing is opened here."""

from __future__ import annotations

import msgspec
from litestar import Router

from daydo_cache import Space
from daydo_db import Database
from daydo_kernel import EventSink, Part
from daydo_pipeline import Runs
from daydo_quota import Ledger
from reference_app.settings import Settings
from reference_app.traffic import Traffic

from .belongings import ImageBelongings
from .catalogue import Catalogue, ShippedFeatures
from .features import PROVIDER, Feature, features_of, flow_of
from .files import Files
from .provider import LocalProvider
from .repository import Uploads
from .routes import images_router
from .service import Images
from .workers import ImageWorkers


class Studio(msgspec.Struct, frozen=True):
    """Photos in, pictures out: ``runs`` carries the tasks, ``workers`` does the work, ``files`` keeps the pictures."""

    files: Files
    workers: ImageWorkers
    runs: Runs
    belongings: ImageBelongings
    router: Router

    @property
    def parts(self) -> dict[str, Part]:
        """What has to run, in this order."""
        return {"images": self.workers, "pipeline": self.runs}


def studio_of(
    settings: Settings,
    db: Database,
    ledger: Ledger,
    traffic: Traffic,
    shown: Space[tuple[Feature, ...]],
    *,
    events: EventSink,
) -> Studio:
    """Features, who carries them out, and their routes; ``shown`` caches what clients are told of features."""
    features = features_of(settings.images)
    flows = [flow_of(feature, settings.images.step_timeout_s) for feature in features.values()]
    files, uploads = Files(settings.data_path / "files"), Uploads(db)
    bound = settings.images.upload_bytes_max
    workers = ImageWorkers(msgspec.structs.replace(settings.image_workers, photo_bytes_max=bound))
    providers = {PROVIDER: traffic.guarded(LocalProvider(workers, files), PROVIDER, features)}
    runs = Runs(db, settings.pipeline, flows=flows, providers=providers, quota=ledger, events=events)
    images = Images(runs, uploads, files, workers, features, settings.images)
    catalogue = Catalogue(shown, ShippedFeatures(features.values()), features.values())
    return Studio(
        files=files,
        workers=workers,
        runs=runs,
        belongings=ImageBelongings(runs, uploads, files),
        router=images_router(images, catalogue, settings.images, traffic.switches),
    )
