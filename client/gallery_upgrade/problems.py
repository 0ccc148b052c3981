"""One class for each kind of problem. Written by `make client` from the errors of the service."""

from gallery_upgrade.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    Gone,
    NotFound,
    Problem,
    ServiceFailed,
    TooLarge,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    Unprocessable,
)


class AlreadyThere(Conflict):
    """The gallery's active generation is under the version asked for."""


class AmbiguousTransformation(Conflict):
    """Several transformations lead between two versions, and nothing says which one is meant."""


class ArtifactUnusable(Conflict):
    """A registered network cannot be loaded any more."""


class BackfillEnded(Conflict):
    """The backfill is not open any more."""


class BackfillOpen(Conflict):
    """The generation has an open backfill already."""


class BadRows(Unprocessable):
    """Some rows of the table cannot be stored: how many, and the first of them with what is wrong."""


class BakeRuns(Conflict):
    """The upgrade is baked; it is neither final nor is its bake to be changed before that ends."""


class BlobDamaged(ServiceFailed):
    """Stored bytes no longer have the digest that they were stored under."""


class BlobMissing(ServiceFailed):
    """There are no bytes of that digest."""


class ChainBroken(Unprocessable):
    """A chained transformation cannot be learned from any more."""


class CollectionBusy(Unavailable):
    """Another process fills the collection, or follows it for very long."""


class CursorGone(Gone):
    """The rows that the cursor belongs to have changed, or are gone."""


class CursorOutdated(Gone):
    """What the pages are of is no more as it was at the first one."""


class CutoverRefused(Conflict):
    """The worker found a reason why the generation cannot go live."""


class DatasetRefused(Unprocessable):
    """There is no such data set, or it cannot be used."""


class EncodingFailed(Unprocessable):
    """A network failed on an image, or gave values that are not finite for one."""


class EncodingStopped(Unprocessable):
    """A network took too long or too much memory."""


class ErasesItems(Conflict):
    """The transformation would make items indistinguishable in a gallery that is searched for them."""


class ExternalNotReady(Conflict):
    """The upgrade of another store is not ready."""


class ExternalUpgradeEnded(Conflict):
    """The upgrade is not open any more."""


class FormBySession(Forbidden):
    """A change by a session lacks the header that no form can send."""


class GalleryBusy(Conflict):
    """An open upgrade or backfill needs the gallery."""


class GalleryExists(Conflict):
    """The name is taken."""


class GatesHold(Conflict):
    """The verdict on the upgrade keeps it from going live."""


class GenerationsChange(Unavailable):
    """An upgrade ended while images were encoded."""


class IllegalTransition(Conflict):
    """The action is not possible in this state."""


class ImageAway(Unprocessable):
    """The place does not answer, is too slow or overloaded: the same image may be read later."""


class ImageNotRead(Unprocessable):
    """The image could not be read from where it is said to be."""


class ImagesTooBusy(TooManyRequests):
    """Other images and tables took all the memory for decoded ones, for longer than a request waits."""


class IndexBusy(Unavailable):
    """An index is being built; the erasure waits for that."""


class InvalidArtifact(Unprocessable):
    """The file is not a usable network."""


class InvalidCursor(Unprocessable):
    """The cursor was not given by this service, or not to this query."""


class InvalidFilter(Unprocessable):
    """The filter is not in the grammar above."""


class InvalidForm(BadRequest):
    """The body is not a readable multipart form."""


class InvalidGrouping(Unprocessable):
    """What to group by is no label and no path."""


class InvalidImage(Unprocessable):
    """The bytes are not an image that can be used."""


class InvalidImport(Unprocessable):
    """The table cannot be stored as it is."""


class InvalidItem(Unprocessable):
    """An item's id, label, metadata or image URI cannot be stored."""


class InvalidKeyRequest(Unprocessable):
    """What is wanted of a key does not fit together."""


class InvalidName(Unprocessable):
    """A text part is to be a name and is not one."""


class InvalidPairs(Unprocessable):
    """The rows cannot be learned from as they are."""


class InvalidQueries(Unprocessable):
    """Some queries of the request cannot be stored; nothing of it was."""


class InvalidQuery(Unprocessable):
    """The query vectors do not fit the generation."""


class InvalidQuerySet(Unprocessable):
    """The parameters do not fit the body."""


class InvalidReferences(Unprocessable):
    """The list names no image."""


class InvalidRegistration(Unprocessable):
    """The parts of the registration do not fit together."""


class InvalidSearch(Unprocessable):
    """The search request is not one image with its options."""


class InvalidSelection(Unprocessable):
    """What is to be deleted is not said, or said twice."""


class InvalidSpec(Unprocessable):
    """The part `spec` is not the JSON that it should be."""


class InvalidUpload(Unprocessable):
    """The form's parts do not fit together."""


class ItemsRefused(Conflict):
    """Items of the sample cannot be upgraded."""


class KeyEnded(Conflict):
    """The key is not valid any more, or was rotated already."""


class KeyInAddress(Unauthorized):
    """A key stands in the address."""


class KeyOfAnotherRequest(Unprocessable):
    """The key came with a request of another content before."""


class LocationNotAllowed(Unprocessable):
    """The place is not one that the operator lists, or leads out of it."""


class MetricsOfAll(Forbidden):
    """The key is of another tenant than the default one, or for some galleries alone."""


class MetricsOfOne(Conflict):
    """Several processes share the port, and whichever answers knows its own metrics alone."""


class MissingPart(Unprocessable):
    """A part that is needed is not in the form."""


class MissingScope(Forbidden):
    """The key does not have the scope that the request needs."""


class NoArtifact(NotFound):
    """The version or the transformation has no such part."""


class NoCurrentEmbedding(Conflict):
    """A query by an item that the generation which answers has no current embedding of yet."""


class NoCurve(Conflict):
    """What the references say does not tell where to stop."""


class NoImageAccepted(Unprocessable):
    """Every image of the request was rejected; nothing was stored."""


class NoImageTaken(Unprocessable):
    """Every image of the request was refused."""


class NoKey(Unauthorized):
    """The request shows no key."""


class NoNextGeneration(Conflict):
    """No upgrade of the gallery is open."""


class NoPath(Conflict):
    """No registered transformations lead from a stored generation to the version asked for."""


class NoReferenceAccepted(Unprocessable):
    """Every image of the request was rejected; nothing was stored."""


class NoRoom(ServiceFailed):
    """The disk has too little room for what would be stored."""


class NoSigningKey(NotFound):
    """The service signs nothing."""


class NoSoundTransformation(Conflict):
    """What leads between two versions is worse, by its own metrics, than having no network at all."""


class NoSuchGeneration(NotFound):
    """The gallery keeps no generation of this id."""


class NoThumbnail(NotFound):
    """The item has no thumbnail: it was imported, or the gallery keeps none."""


class NoTransformation(Conflict):
    """No registered transformation leads from the one version to the other."""


class NoVectorAccepted(Unprocessable):
    """Every vector of the request was rejected; nothing was stored."""


class NoWorkerAnswered(Unavailable):
    """No worker cut over in time; nothing has changed."""


class NotACursor(Unprocessable):
    """The cursor did not come from an export of this gallery and generation."""


class NotAskedFor(Conflict):
    """Nobody asks for the cutover any more."""


class NotCancellable(Conflict):
    """The job has ended, or is a part of something else."""


class NotComplete(Conflict):
    """Live items lack a current row in the generation that should become active."""


class NotExportable(Conflict):
    """The network cannot be written as ONNX."""


class NotJson(Unprocessable):
    """What is to be JSON is not."""


class NotPausable(Conflict):
    """The job has ended, or is of a kind that does not pause."""


class NotReady(Conflict):
    """The upgrade is not ready."""


class NotSwitched(Unavailable):
    """The upgrade is live, and this process does not answer by its generation yet."""


class NotTakingImages(Conflict):
    """The backfill is not running."""


class NotTried(Unavailable):
    """φ failed on a batch, and trying its queries one by one took too long to come to this one."""


class NotYourGallery(Forbidden):
    """The key is for other galleries."""


class NotYourTenant(Forbidden):
    """Keys of another tenant are made by admins of the default one."""


class NothingToBackfill(Conflict):
    """No item is worth it, or none can be had."""


class NothingToCompare(NotFound):
    """There is no query of this kind."""


class OrderUnknown(Conflict):
    """Nothing is known by which the items could be put into the order asked for."""


class OtherFormat(BadRequest):
    """The network is not to be had in the format that was asked for."""


class OtherQueries(Conflict):
    """The set says otherwise of queries with the same ids."""


class OtherSource(Conflict):
    """The backfill takes no images from clients."""


class OtherSpace(Conflict):
    """The vectors were said to be of another model version than the active one."""


class OtherUpgradeFirst(Conflict):
    """Another upgrade of the gallery stands on the generation."""


class QuerySetExists(Conflict):
    """The name is taken, by queries that these cannot be added to."""


class QuotaExceeded(TooManyRequests):
    """The tenant or the key has had what it may have."""


class QuotasUncounted(Unavailable):
    """Quotas cannot be counted, and what is asked for is not given uncounted."""


class ReadsNoImages(Conflict):
    """The operator lets the service read no images by their URIs."""


class ReportStale(Conflict):
    """More of the gallery changed since the newest report than it may: judge it again first."""


class RequestStillRuns(Conflict):
    """Another request with this key has not been answered yet."""


class RollbackWouldLose(Conflict):
    """Items were written since the cutover that the previous generation does not have."""


class SharedByAll(Forbidden):
    """What is shared by all tenants is changed by an operator alone."""


class SmoothingNotPossible(Conflict):
    """Rows cannot be smoothed by the index that there is."""


class StillRead(Unavailable):
    """A table could not be dropped in time, because something reads it."""


class StoreAway(Unavailable):
    """The store does not answer, or refuses for a reason that passes; the same may succeed later."""


class StoreOfOtherSpace(Conflict):
    """What the store holds cannot be what the model version gives."""


class StoreRefused(Conflict):
    """What the store holds, what state it is in, or how it is named keeps it from what was asked of it."""


class StoreTaken(Conflict):
    """The store has an upgrade that is not ended, or whose new side is not removed yet."""


class SwitchedElsewhere(Conflict):
    """The store's searches see another side than the upgrade's state says."""


class TableTooLarge(TooLarge):
    """The table has more rows, or more bytes once they are read, than one request may bring."""


class ThumbnailsUnproven(Conflict):
    """Nothing says that thumbnails are better than h."""


class TooDeep(Unprocessable):
    """The pages of a query end before what the cursor asks for."""


class TooFarBehind(Conflict):
    """More was written than a cutover may look at while writers wait: catch up first."""


class TooManyExports(TooManyRequests):
    """As many exports as may run at once in this process do."""


class TooManyFiles(TooLarge):
    """The form has more files than one request may carry."""


class TooManyQueries(TooManyRequests):
    """As many image queries run or wait as may."""


class TooManyReferences(TooLarge):
    """The list is longer than one job takes."""


class TooManyRows(TooLarge):
    """The rows would take more memory than a training may."""


class TooManyStreams(TooManyRequests):
    """As many streams are open as may be."""


class TooManyTrials(TooManyRequests):
    """As many networks are being tried as may be."""


class TooManyValues(TooLarge):
    """The JSON has more lists and objects than one request may bring."""


class TooMuchText(TooLarge):
    """The text of a form is more than one request may bring."""


class TrainingRefused(Unprocessable):
    """The training cannot be begun, or cannot go on, with a sentence that says why."""


class TransformationFailed(Conflict):
    """A network of a transformation failed on rows, or was stopped; trying again may not help."""


class TransformationInUse(Conflict):
    """A generation or an upgrade refers to the transformation."""


class UnknownAsset(NotFound):
    """The console has no such file."""


class UnknownBackfill(NotFound):
    """No backfill has this id."""


class UnknownExternalReport(NotFound):
    """The upgrade of another store has no report yet."""


class UnknownExternalUpgrade(NotFound):
    """No upgrade of another store has this id."""


class UnknownFormat(BadRequest):
    """The bytes are neither Parquet nor Arrow's."""


class UnknownGallery(NotFound):
    """No gallery has this name."""


class UnknownGate(BadRequest):
    """A gate asks for what cannot be gated."""


class UnknownItem(NotFound):
    """The gallery has no live item with this id."""


class UnknownJob(NotFound):
    """No job has this id."""


class UnknownKey(Unauthorized):
    """The key is none, or not valid any more."""


class UnknownKeyId(NotFound):
    """No key has this id."""


class UnknownOperation(NotFound):
    """No operation has this path and method."""


class UnknownParameter(Unprocessable):
    """The query has a parameter that the call does not have, one of its own twice, or text that is nowhere stored."""


class UnknownQuerySet(NotFound):
    """The gallery has no query set of this name."""


class UnknownReport(NotFound):
    """The upgrade has no report of this number."""


class UnknownSession(Unauthorized):
    """The browser's session has ended."""


class UnknownStore(NotFound):
    """No store has this name, or it is another tenant's."""


class UnknownTenant(NotFound):
    """No gallery is this tenant's."""


class UnknownTransformation(NotFound):
    """No transformation has this id."""


class UnknownUpgrade(NotFound):
    """No upgrade has this id."""


class UnknownVersion(NotFound):
    """No model version has this name."""


class UnsoundDefault(Conflict):
    """By its own metrics the transformation is not to be taken unless it is named."""


class UpgradeEnded(Conflict):
    """The upgrade is not open any more."""


class UpgradeOpen(Conflict):
    """The gallery has an open upgrade already."""


class UpgradesTooBusy(Unavailable):
    """Generations came and went each time that the vectors were ready."""


class VersionExists(Conflict):
    """The name is taken."""


class VersionHasNetworks(Conflict):
    """The version has networks already; they stay as they are."""


class VersionInUse(Conflict):
    """A gallery or a transformation refers to the version."""


class VersionWithoutNetworks(Conflict):
    """The model version is of vectors alone: nothing encodes images for it."""


class WrongSpace(Conflict):
    """The query was said to be of another model version than the generation that answers."""


BY_TYPE: dict[str, type[Problem]] = {
    "urn:gallery-upgrade:already-there": AlreadyThere,
    "urn:gallery-upgrade:ambiguous-transformation": AmbiguousTransformation,
    "urn:gallery-upgrade:artifact-unusable": ArtifactUnusable,
    "urn:gallery-upgrade:backfill-ended": BackfillEnded,
    "urn:gallery-upgrade:backfill-open": BackfillOpen,
    "urn:gallery-upgrade:bad-rows": BadRows,
    "urn:gallery-upgrade:bake-runs": BakeRuns,
    "urn:gallery-upgrade:blob-damaged": BlobDamaged,
    "urn:gallery-upgrade:blob-missing": BlobMissing,
    "urn:gallery-upgrade:chain-broken": ChainBroken,
    "urn:gallery-upgrade:collection-busy": CollectionBusy,
    "urn:gallery-upgrade:cursor-gone": CursorGone,
    "urn:gallery-upgrade:cursor-outdated": CursorOutdated,
    "urn:gallery-upgrade:cutover-refused": CutoverRefused,
    "urn:gallery-upgrade:dataset-refused": DatasetRefused,
    "urn:gallery-upgrade:encoding-failed": EncodingFailed,
    "urn:gallery-upgrade:encoding-stopped": EncodingStopped,
    "urn:gallery-upgrade:erases-items": ErasesItems,
    "urn:gallery-upgrade:external-not-ready": ExternalNotReady,
    "urn:gallery-upgrade:external-upgrade-ended": ExternalUpgradeEnded,
    "urn:gallery-upgrade:form-by-session": FormBySession,
    "urn:gallery-upgrade:gallery-busy": GalleryBusy,
    "urn:gallery-upgrade:gallery-exists": GalleryExists,
    "urn:gallery-upgrade:gates-hold": GatesHold,
    "urn:gallery-upgrade:generations-change": GenerationsChange,
    "urn:gallery-upgrade:illegal-transition": IllegalTransition,
    "urn:gallery-upgrade:image-away": ImageAway,
    "urn:gallery-upgrade:image-not-read": ImageNotRead,
    "urn:gallery-upgrade:images-too-busy": ImagesTooBusy,
    "urn:gallery-upgrade:index-busy": IndexBusy,
    "urn:gallery-upgrade:invalid-artifact": InvalidArtifact,
    "urn:gallery-upgrade:invalid-cursor": InvalidCursor,
    "urn:gallery-upgrade:invalid-filter": InvalidFilter,
    "urn:gallery-upgrade:invalid-form": InvalidForm,
    "urn:gallery-upgrade:invalid-grouping": InvalidGrouping,
    "urn:gallery-upgrade:invalid-image": InvalidImage,
    "urn:gallery-upgrade:invalid-import": InvalidImport,
    "urn:gallery-upgrade:invalid-item": InvalidItem,
    "urn:gallery-upgrade:invalid-key-request": InvalidKeyRequest,
    "urn:gallery-upgrade:invalid-name": InvalidName,
    "urn:gallery-upgrade:invalid-pairs": InvalidPairs,
    "urn:gallery-upgrade:invalid-queries": InvalidQueries,
    "urn:gallery-upgrade:invalid-query": InvalidQuery,
    "urn:gallery-upgrade:invalid-query-set": InvalidQuerySet,
    "urn:gallery-upgrade:invalid-references": InvalidReferences,
    "urn:gallery-upgrade:invalid-registration": InvalidRegistration,
    "urn:gallery-upgrade:invalid-search": InvalidSearch,
    "urn:gallery-upgrade:invalid-selection": InvalidSelection,
    "urn:gallery-upgrade:invalid-spec": InvalidSpec,
    "urn:gallery-upgrade:invalid-upload": InvalidUpload,
    "urn:gallery-upgrade:items-refused": ItemsRefused,
    "urn:gallery-upgrade:key-ended": KeyEnded,
    "urn:gallery-upgrade:key-in-address": KeyInAddress,
    "urn:gallery-upgrade:key-of-another-request": KeyOfAnotherRequest,
    "urn:gallery-upgrade:location-not-allowed": LocationNotAllowed,
    "urn:gallery-upgrade:metrics-of-all": MetricsOfAll,
    "urn:gallery-upgrade:metrics-of-one": MetricsOfOne,
    "urn:gallery-upgrade:missing-part": MissingPart,
    "urn:gallery-upgrade:missing-scope": MissingScope,
    "urn:gallery-upgrade:no-artifact": NoArtifact,
    "urn:gallery-upgrade:no-current-embedding": NoCurrentEmbedding,
    "urn:gallery-upgrade:no-curve": NoCurve,
    "urn:gallery-upgrade:no-image-accepted": NoImageAccepted,
    "urn:gallery-upgrade:no-image-taken": NoImageTaken,
    "urn:gallery-upgrade:no-key": NoKey,
    "urn:gallery-upgrade:no-next-generation": NoNextGeneration,
    "urn:gallery-upgrade:no-path": NoPath,
    "urn:gallery-upgrade:no-reference-accepted": NoReferenceAccepted,
    "urn:gallery-upgrade:no-room": NoRoom,
    "urn:gallery-upgrade:no-signing-key": NoSigningKey,
    "urn:gallery-upgrade:no-sound-transformation": NoSoundTransformation,
    "urn:gallery-upgrade:no-such-generation": NoSuchGeneration,
    "urn:gallery-upgrade:no-thumbnail": NoThumbnail,
    "urn:gallery-upgrade:no-transformation": NoTransformation,
    "urn:gallery-upgrade:no-vector-accepted": NoVectorAccepted,
    "urn:gallery-upgrade:no-worker-answered": NoWorkerAnswered,
    "urn:gallery-upgrade:not-a-cursor": NotACursor,
    "urn:gallery-upgrade:not-asked-for": NotAskedFor,
    "urn:gallery-upgrade:not-cancellable": NotCancellable,
    "urn:gallery-upgrade:not-complete": NotComplete,
    "urn:gallery-upgrade:not-exportable": NotExportable,
    "urn:gallery-upgrade:not-json": NotJson,
    "urn:gallery-upgrade:not-pausable": NotPausable,
    "urn:gallery-upgrade:not-ready": NotReady,
    "urn:gallery-upgrade:not-switched": NotSwitched,
    "urn:gallery-upgrade:not-taking-images": NotTakingImages,
    "urn:gallery-upgrade:not-tried": NotTried,
    "urn:gallery-upgrade:not-your-gallery": NotYourGallery,
    "urn:gallery-upgrade:not-your-tenant": NotYourTenant,
    "urn:gallery-upgrade:nothing-to-backfill": NothingToBackfill,
    "urn:gallery-upgrade:nothing-to-compare": NothingToCompare,
    "urn:gallery-upgrade:order-unknown": OrderUnknown,
    "urn:gallery-upgrade:other-format": OtherFormat,
    "urn:gallery-upgrade:other-queries": OtherQueries,
    "urn:gallery-upgrade:other-source": OtherSource,
    "urn:gallery-upgrade:other-space": OtherSpace,
    "urn:gallery-upgrade:other-upgrade-first": OtherUpgradeFirst,
    "urn:gallery-upgrade:query-set-exists": QuerySetExists,
    "urn:gallery-upgrade:quota-exceeded": QuotaExceeded,
    "urn:gallery-upgrade:quotas-uncounted": QuotasUncounted,
    "urn:gallery-upgrade:reads-no-images": ReadsNoImages,
    "urn:gallery-upgrade:report-stale": ReportStale,
    "urn:gallery-upgrade:request-still-runs": RequestStillRuns,
    "urn:gallery-upgrade:rollback-would-lose": RollbackWouldLose,
    "urn:gallery-upgrade:shared-by-all": SharedByAll,
    "urn:gallery-upgrade:smoothing-not-possible": SmoothingNotPossible,
    "urn:gallery-upgrade:still-read": StillRead,
    "urn:gallery-upgrade:store-away": StoreAway,
    "urn:gallery-upgrade:store-of-other-space": StoreOfOtherSpace,
    "urn:gallery-upgrade:store-refused": StoreRefused,
    "urn:gallery-upgrade:store-taken": StoreTaken,
    "urn:gallery-upgrade:switched-elsewhere": SwitchedElsewhere,
    "urn:gallery-upgrade:table-too-large": TableTooLarge,
    "urn:gallery-upgrade:thumbnails-unproven": ThumbnailsUnproven,
    "urn:gallery-upgrade:too-deep": TooDeep,
    "urn:gallery-upgrade:too-far-behind": TooFarBehind,
    "urn:gallery-upgrade:too-many-exports": TooManyExports,
    "urn:gallery-upgrade:too-many-files": TooManyFiles,
    "urn:gallery-upgrade:too-many-queries": TooManyQueries,
    "urn:gallery-upgrade:too-many-references": TooManyReferences,
    "urn:gallery-upgrade:too-many-rows": TooManyRows,
    "urn:gallery-upgrade:too-many-streams": TooManyStreams,
    "urn:gallery-upgrade:too-many-trials": TooManyTrials,
    "urn:gallery-upgrade:too-many-values": TooManyValues,
    "urn:gallery-upgrade:too-much-text": TooMuchText,
    "urn:gallery-upgrade:training-refused": TrainingRefused,
    "urn:gallery-upgrade:transformation-failed": TransformationFailed,
    "urn:gallery-upgrade:transformation-in-use": TransformationInUse,
    "urn:gallery-upgrade:unknown-asset": UnknownAsset,
    "urn:gallery-upgrade:unknown-backfill": UnknownBackfill,
    "urn:gallery-upgrade:unknown-external-report": UnknownExternalReport,
    "urn:gallery-upgrade:unknown-external-upgrade": UnknownExternalUpgrade,
    "urn:gallery-upgrade:unknown-format": UnknownFormat,
    "urn:gallery-upgrade:unknown-gallery": UnknownGallery,
    "urn:gallery-upgrade:unknown-gate": UnknownGate,
    "urn:gallery-upgrade:unknown-item": UnknownItem,
    "urn:gallery-upgrade:unknown-job": UnknownJob,
    "urn:gallery-upgrade:unknown-key": UnknownKey,
    "urn:gallery-upgrade:unknown-key-id": UnknownKeyId,
    "urn:gallery-upgrade:unknown-operation": UnknownOperation,
    "urn:gallery-upgrade:unknown-parameter": UnknownParameter,
    "urn:gallery-upgrade:unknown-query-set": UnknownQuerySet,
    "urn:gallery-upgrade:unknown-report": UnknownReport,
    "urn:gallery-upgrade:unknown-session": UnknownSession,
    "urn:gallery-upgrade:unknown-store": UnknownStore,
    "urn:gallery-upgrade:unknown-tenant": UnknownTenant,
    "urn:gallery-upgrade:unknown-transformation": UnknownTransformation,
    "urn:gallery-upgrade:unknown-upgrade": UnknownUpgrade,
    "urn:gallery-upgrade:unknown-version": UnknownVersion,
    "urn:gallery-upgrade:unsound-default": UnsoundDefault,
    "urn:gallery-upgrade:upgrade-ended": UpgradeEnded,
    "urn:gallery-upgrade:upgrade-open": UpgradeOpen,
    "urn:gallery-upgrade:upgrades-too-busy": UpgradesTooBusy,
    "urn:gallery-upgrade:version-exists": VersionExists,
    "urn:gallery-upgrade:version-has-networks": VersionHasNetworks,
    "urn:gallery-upgrade:version-in-use": VersionInUse,
    "urn:gallery-upgrade:version-without-networks": VersionWithoutNetworks,
    "urn:gallery-upgrade:wrong-space": WrongSpace,
}
