"""The answers of the API. Written by `make client` from docs/openapi.json."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from gallery_upgrade.api.answer import Answer, Page


class BackfillDryRunView(Answer):
    """`candidates` are worth a backfill, `items` of them would be done, in this `order`."""

    candidates: int
    curve: list[CurvePointView]
    generation: int
    items: int
    knee: float | None
    measure: str | None
    order: str
    orders: dict[str, float]
    reason: str
    references: int
    seconds_per_item: float


class BackfillImagesAnswer(Answer):
    results: list[BackfillResultView]


class BackfillResultView(Answer):
    error: str | None
    id: str
    status: str


class BackfillView(Answer):
    budget_seconds: float | None
    candidates: int
    created_at: datetime
    error: str | None
    finished_at: datetime | None
    gallery: str
    generation: int
    id: int
    items: int
    model_version: str
    order: str
    outcomes: OutcomesView
    progress: dict[str, PhaseView]
    simulation: SimulationView
    source: str
    speed: float
    spent_seconds: float
    state: str
    updated_at: datetime


class BakeFiguresView(Answer):
    """What was measured on the newest `n` queries that both generations were asked: how many only the new one
    `failed`, and how many found nothing any more (`empty`); of the `timed` ones that both answered, the 99th
    percentiles in seconds, and how many were too `slow`; the mean overlap@10 of the `compared` ones, and its
    deviation. `broken` are the guardrails that did not hold.
    """

    broken: list[dict[str, str | float]]
    compared: int
    empty: int
    failed: int
    n: int
    overlap: float | None
    overlap_deviation: float | None
    p99_after: float | None
    p99_before: float | None
    slow: int
    timed: int


class BakeResultView(Answer):
    """How a bake ended: `passed`, `undecided` (too few queries came), `rolled_back`, `not_rolled_back` (a guardrail
    broke, and a rollback was refused) or `ended` by request.
    """

    figures: BakeFiguresView | None
    outcome: str
    reason: str


class BakeView(Answer):
    """It runs from the cutover until `ends_at`, null before it, or until there is a `result`."""

    ends_at: datetime | None
    guardrails: GuardrailsView | None = None
    least_queries: int = 50
    minutes: float
    result: BakeResultView | None
    share: float = 0.05


class BatchAnswer(Answer):
    """The same, with one list of neighbours, and one `complete`, per query; `exact` when it is so of all of them."""

    complete: list[bool] | None = None
    exact: bool
    generation: int
    model_version: str
    neighbors: list[list[NeighborView]]
    next_cursor: str | None = None
    revision: int


class CanaryQueriesView(Answer):
    """How many image queries were `asked` of the candidate by its canary, how many of these it `answered`, and how
    many it `failed`, which the active generation answered.
    """

    answered: int
    asked: int
    failed: int


class CurvePointView(Answer):
    """What answers gain when this share is done, with the bounds of 95 % confidence, and what it takes one worker."""

    gain: float
    high: float
    low: float
    seconds: float
    share: float


class DecisionView(Answer):
    """On what verdict, of which report, an upgrade went live: `by` itself (`auto`) or by `request` (`who` asked for
    it, the name of a key, `-` without keys, and when), and for what `reason` past gates that failed.
    """

    asked_at: datetime | None
    by: str
    reason: str | None
    report: int | None
    verdict: str
    who: str | None


class DeletedView(Answer):
    """How many items were deleted, and the gallery's revision since."""

    deleted: int
    revision: int


class DescriptionView(Answer):
    """What a store holds: `metric` is null where it does not know; with `scales` it brings vectors to unit norm
    itself, and with `notices_writes` it says which rows were written while it is upgraded.
    """

    dtype: str
    embedding_dim: int
    metric: str | None
    notices_writes: bool
    rows: int
    scales: bool
    side_information_dim: int | None
    warning: str | None


class DrawnReferencesView(Answer):
    """Keys of rows whose vectors by the new model version would be evidence, how many are `given`, of how many that
    were `drawn`.
    """

    drawn: int
    given: int
    ids: list[str]


class DryRunView(Answer):
    """`reason` says why the path is this one, and what would make a shorter one possible. `bytes` go into the database
    and `index_bytes` into the blob store; `seconds` is for one worker at the rate that was measured on
    `measured_items` rows, without the index and smoothing; null for an empty gallery. `ahead` is what workers have
    at hand, and `seconds_ahead` what one may take for it, without index builds, before it turns to this upgrade.
    `warnings` are sentences on what the upgrade will want of somebody.
    """

    ahead: WorkAheadView
    bytes: int
    index_bytes: int
    items: int
    measured_items: int
    path: list[LegView]
    reason: str
    seconds: float | None
    seconds_ahead: float | None
    warnings: list[str]


class EntryView(Answer):
    """`hash` is the SHA-256 over the entry before and the canonical JSON of this one without it."""

    action: str
    after: dict[str, Any] | None
    at: datetime
    before: dict[str, Any] | None
    hash: str
    id: int
    key_id: str | None
    name: str
    reason: str | None
    request_id: str
    subject: str
    subject_kind: str
    tenant: str


class EvaluationView(Answer):
    """The number that the report will have."""

    report: int


class ExampleItemView(Answer):
    """An item as it is now. `since` the report it is the `same`, or was `changed`, so that label and image may be
    others, or is `gone`. `thumbnail_url` is null for an item without one.
    """

    id: str
    label: str | None
    since: str
    thumbnail_url: str | None


class ExampleView(Answer):
    """A query by its `item`, null where it was none, and the first five of both generations' answers, nearest first.

    The values are what it was chosen by: of flips, the rank of the first right item before and after, null beyond
    ten; of churn, the overlap@10 (after); of hubs, in how many answers the item was, whose answers are the items
    whose images found it; of uncertain ones, the squared error that h expects (after).
    """

    after: list[FoundItemView]
    before: list[FoundItemView]
    item: ExampleItemView | None
    value_after: float | None
    value_before: float | None


class ExamplesView(Answer):
    """Of which `report`, and the examples, the most telling first."""

    examples: list[ExampleView]
    kind: str
    report: int


class ExternalDecisionView(Answer):
    """On what verdict, of which report, the store is switched, or was: `by` itself (`auto`) or by `request`, whose,
    and for what `reason` past gates that failed.
    """

    by: str
    reason: str | None
    report: int | None
    verdict: str
    who: str | None


class ExternalDryRunView(Answer):
    """`rows` in `ranges` would be read, and `bytes` of vectors written beside them. `switch` says what a cutover does,
    and `cannot_judge` what no check can tell.
    """

    bytes: int
    cannot_judge: list[str]
    description: DescriptionView
    ranges: int
    rows: int
    switch: str
    transformation: int


class ExternalReportView(Answer):
    """`content` holds the gates, what was measured, and what the verification found; `evidence` is the number of
    references.
    """

    content: dict[str, Any]
    created_at: datetime
    evidence: int
    report: int
    seconds: float
    verdict: str


class ExternalUpgradeView(Answer):
    """`pass_number` is how often the store's ranges have been gone over. `cutover_requested_at` is set until the store
    is switched, and `removed_at` when what the upgrade left in the store is gone.
    """

    created_at: datetime
    cutover: str
    cutover_requested_at: datetime | None
    decision: ExternalDecisionView | None
    description: DescriptionView
    error: str | None
    finished_at: datetime | None
    from_version: str
    id: int
    judged: VerdictView | None
    late: LateView | None
    live_at: datetime | None
    pass_number: int
    progress: dict[str, PhaseView]
    removed_at: datetime | None
    speed: float
    state: str
    store: str
    to_version: str
    transformation: int
    updated_at: datetime
    verification: VerificationView | None


class FoundItemView(Answer):
    distance: float
    id: str
    label: str | None
    since: str
    thumbnail_url: str | None


class GalleryView(Answer):
    created_at: datetime
    dtype: str
    generation: int
    has_side_information: bool
    index: str
    items: int
    metric: str
    model_version: str
    name: str
    probe_images: int
    revision: int
    task: str
    thumbnails: bool


class GateFigure(Answer):
    """What was measured for a gate, with its interval; null where nothing could be."""

    high: float | None
    limit: float
    low: float | None
    metric: str
    n: int
    outcome: str
    slice: str | None
    value: float | None


class GateRuleView(Answer):
    """`metric` must not be below `limit`; of one slice (`attribute=value`, `cmc_at_1` alone) where there is one."""

    limit: float
    metric: str
    slice: str | None = None


class GuardrailsView(Answer):
    """What rolls an upgrade back while it is baked: the `errors` (share of queries that the new generation alone
    fails), `empty_answers` (share that finds nothing any more), `p99_ratio` (of how long both take) that may be at
    most, and the mean `overlap`@10 of both answers that must be at least; null watches nothing.
    """

    empty_answers: float | None = 0.01
    errors: float | None = 0.01
    overlap: float | None = 0.2
    p99_ratio: float | None = 2.0


class Health(Answer):
    """`status` is ok, or no_room while nothing is stored because the disk has too little; `detail` says more."""

    detail: str | None = None
    status: str


class IdentityView(Answer):
    """Whoever asks: the id and name of the key (null and "-" where none is needed), its tenant, and what it may do."""

    galleries: list[str]
    key_id: str | None
    name: str
    scopes: list[str]
    tenant: str


class ImageAnswer(Answer):
    """Neighbours of the image, nearest first, and the one generation that they all come from.

    `exact` is true when all vectors that pass the filter were compared with the query, as the index holds them
    (float16 in a graph), and false when a graph was walked, which may miss a few of the nearest. `next_cursor`
    comes with `cursor`, null on the last page. `complete` comes with `group_by`: false where fewer groups than k
    were found among as many neighbours as are looked at.
    """

    complete: bool | None = None
    exact: bool
    generation: int
    model_version: str
    neighbors: list[NeighborView]
    next_cursor: str | None = None
    revision: int


class ImageResultView(Answer):
    error: str | None = None
    id: str
    status: str


class ImagesAnswer(Answer):
    results: list[ImageResultView]


class ImportAnswer(Answer):
    count: int


class ItemView(Answer):
    """`image_uri` is where its user says that the image is kept.

    `origin`, `hops` and `uncertainty` are those of its row in the active generation: where the embedding comes
    from, how many transformations ago it came from pixels (or was imported), and the squared error (l2) that h
    expects of it, null where no h made it or h does not say.
    """

    created_at: datetime
    hops: int | None
    id: str
    image_uri: str | None
    label: str | None
    metadata: dict[str, Any]
    origin: str | None
    revision: int
    uncertainty: float | None


class JobView(Answer):
    created_at: datetime
    error: str | None
    finished_at: datetime | None
    generation: int | None
    id: int
    kind: str
    progress: dict[str, Any]
    request: dict[str, Any] | None
    result: dict[str, Any] | None
    speed: float
    state: str
    upgrade: int | None


class KeyView(Answer):
    """A key without its secret. `created_by` is the id of its maker's key, null for the command line and for whoever
    needed none.
    """

    created_at: datetime
    created_by: str | None
    expires_at: datetime
    galleries: list[str]
    id: str
    last_used_at: datetime | None
    name: str
    revoked_at: datetime | None
    rotated_at: datetime | None
    scopes: list[str]
    tenant: str


class LateView(Answer):
    """What was written on the old side around the switch, of a store that does not say: how many ranges, and in these
    the keys whose new side is not made of the old one. They are left as they are. `error` is why it is not known.
    """

    changed_ranges: int | None = None
    conflicting_keys: list[str] | None = None
    conflicts: int | None = None
    error: str | None = None


class LeaseView(Answer):
    """Whose images are wanted, until when, and how many items are `left`, those that are leased to others included."""

    expires_at: datetime | None
    ids: list[str]
    left: int


class LegView(Answer):
    generation: int
    transformations: list[int]


class MeasuredView(Answer):
    """The newest report on an upgrade: `/v1/upgrades/{id}/report` has all of it."""

    evidence: int
    gates: list[GateFigure]
    report: int
    verdict: str


class ModelVersionView(Answer):
    """`shared`: all tenants use it. What is of networks is null for a version without them, which encodes no images."""

    created_at: datetime
    embedding_dim: int
    embedding_model_digest: str | None
    embedding_model_form: NetworkFormView | None
    embedding_model_kind: str | None
    name: str
    normalize: bool
    preprocessing: dict[str, Any] | None
    shared: bool
    side_information_dim: int | None
    side_information_model_digest: str | None
    side_information_model_form: NetworkFormView | None
    side_information_model_kind: str | None


class NeighborView(Answer):
    """`hops` counts the transformations since the item's pixels, or its import. `uncertainty` is the squared error
    (l2) that h expects of its embedding, null where no h made it or h does not say. `thumbnail_url` is null for an
    item without one: it was imported, or the gallery keeps none. `group` comes with `group_by`: the value of which
    it is the best neighbour, null where it has none and is a group by itself.
    """

    distance: float
    group: str | bool | float | None = None
    hops: int
    id: str
    image_uri: str | None
    label: str | None
    metadata: dict[str, Any]
    origin: str
    thumbnail_url: str | None
    uncertainty: float | None


class NetworkFormView(Answer):
    """How a network is run; `output` is null where it has one without a name."""

    input: NetworkInputView
    output: str | None


class NetworkInputView(Answer):
    """How a network is given images; null where neither its file nor the spec said it, and the usual is taken."""

    batch: int | None
    channels: str
    dtype: str | None
    layout: str | None
    name: str | None
    range: list[int]


class NewKeyView(Answer):
    """`key` is shown this once."""

    created_at: datetime
    created_by: str | None
    expires_at: datetime
    galleries: list[str]
    id: str
    key: str
    last_used_at: datetime | None
    name: str
    revoked_at: datetime | None
    rotated_at: datetime | None
    scopes: list[str]
    tenant: str


class OriginView(Answer):
    """How many items have this origin and number of hops. `uncertainty` is the mean squared error that h expects of
    `uncertainty_items` of them, null where it says it of none.
    """

    hops: int
    items: int
    origin: str
    uncertainty: float | None
    uncertainty_items: int


class OutcomesView(Answer):
    """Of the items that are done: `superseded` ones were written again or deleted before their turn came."""

    backfilled: int
    refused: int
    superseded: int


class PhaseView(Answer):
    done: int
    eta_seconds: float | None
    rate: float | None
    total: int
    unit: str


class PublicKeyView(Answer):
    algorithm: str
    public_key: str


class QualityView(Answer):
    """`versions` lead from that of the pixels, or of the import, to the active one, as most items took them."""

    gallery: str
    generation: int
    items: int
    model_version: str
    origins: list[OriginView]
    revision: int
    uncertainty: float | None
    upgrades: list[StepView]
    versions: list[str]


class QuerySetView(Answer):
    """`labelled` queries have a label, the others relevant items. `vectors` says how many have a vector under which
    model version: of images, how many were encoded by it so far. No item has the `unknown_ids`, of those that are
    relevant or a query's own item, and none has the `unknown_labels`: they count nothing until one does.
    """

    created_at: datetime
    kind: str
    labelled: int
    name: str
    queries: int
    unknown_ids: int
    unknown_labels: int
    vectors: dict[str, int]


class RecordView(Answer):
    """`signature` is null where the service has no key, and `unsigned_because` says so."""

    record: dict[str, Any]
    signature: SignatureView | None
    unsigned_because: str | None = None


class ReferenceResultView(Answer):
    error: str | None
    id: str
    status: str


class ReferencesAnswer(Answer):
    results: list[ReferenceResultView]


class RefusedItemView(Answer):
    id: str
    reason: str


class RejectedImageView(Answer):
    id: str
    image_uri: str
    reason: str


class ReportLine(Answer):
    """`revision` is the gallery's that the report was made at, and `evidence` the number of its images that both
    versions encoded, and of queries from its query sets; `seconds` is what judging took.
    """

    created_at: datetime
    evidence: int
    report: int
    revision: int
    seconds: float
    verdict: str


class ReportView(Answer):
    """`content` holds the gates and all that was measured, but for the examples, which are items by ids of our own:
    `/report/examples` says which they are. `decision` is how the upgrade went live, if it did on this report.
    """

    content: dict[str, Any]
    created_at: datetime
    decision: DecisionView | None
    evidence: int
    report: int
    revision: int
    seconds: float
    verdict: str


class SignatureView(Answer):
    """`value` is over the canonical JSON of the record; both it and the key are base64."""

    algorithm: str
    public_key: str
    value: str


class SimulationView(Answer):
    """What a backfill would be worth, played through on the references: `measure` is `cmc_at_1` or `overlap_at_10`
    (with a gallery that was encoded anew), null with too few references; `orders` are the areas under each order's
    curve, `curve` and `knee` those of the best one.
    """

    curve: list[CurvePointView]
    knee: float | None
    measure: str | None
    orders: dict[str, float]
    reason: str
    references: int
    seconds_per_item: float


class SmoothingView(Answer):
    """Each row that h makes becomes (1 - `share`) of itself and `share` of the mean of its `neighbors` nearest rows."""

    neighbors: int = 20
    share: float = 0.3


class StepView(Answer):
    """An upgrade that led to the active generation, through these versions; `measured` is null if it was not judged."""

    live_at: datetime | None
    measured: MeasuredView | None
    transformations: list[int]
    upgrade: int
    versions: list[str]


class StoreView(Answer):
    """A store by its name, and what it says of itself; else why it says nothing."""

    description: DescriptionView | None
    error: str | None
    name: str


class StoresAnswer(Answer):
    items: list[StoreView]


class TallyView(Answer):
    """How many blind votes there are for the answers before, after, and neither; `p_value` is that of the two-sided
    sign test, null without a choice.
    """

    after: int
    before: int
    neither: int
    p_value: float | None


class TransformationView(Answer):
    """`shared`: all tenants use it."""

    architecture: dict[str, Any]
    created_at: datetime
    default: bool
    from_version: str
    g_digest: str | None
    g_kind: str | None
    h_digest: str
    h_kind: str
    id: int
    metrics: dict[str, Any] | None
    shared: bool
    to_version: str
    training: dict[str, Any] | None


class UpgradeView(Answer):
    bake: BakeView | None
    canary: float
    canary_queries: CanaryQueriesView
    created_at: datetime
    cutover: str
    decision: DecisionView | None
    error: str | None
    finished_at: datetime | None
    from_generation: int
    from_version: str
    gallery: str
    gates: list[GateRuleView]
    id: int
    judged: VerdictView | None
    live_at: datetime | None
    observe: bool
    path: list[LegView]
    progress: dict[str, PhaseView]
    smoothing: SmoothingView | None
    speed: float
    state: str
    to_generation: int
    to_version: str
    updated_at: datetime


class VectorResultView(Answer):
    error: str | None
    id: str
    status: str


class VectorsAnswer(Answer):
    results: list[VectorResultView]


class VerdictView(Answer):
    """What the newest report, of this number, says: `pass`, `fail`, `inconclusive` or `not_judged`."""

    report: int
    verdict: str


class VerificationView(Answer):
    """What comparing both sides of the store found. `ids_sha256` is over the ids of both sides, which were equal range
    by range; `rows_transformed_anew` of the rows were compared with what the new side has, in the store's
    `number_format`, and differ by `largest_difference` of their norm at most.
    """

    changed_ranges: int
    ids_sha256: str
    largest_difference: float
    new_side_sha256: str
    number_format: str
    passes: int
    ranges: int
    repaired_ranges: int
    rows: int
    rows_in_store: int
    rows_transformed_anew: int


class WantedReferencesView(Answer):
    """Items whose images would be evidence, and how many of the gallery's have been `given` already."""

    given: int
    ids: list[str]


class WorkAheadView(Answer):
    """`upgrades` that need workers have `items` to transform; `trainings` give way to upgrades; `index_builds` that
    are under way do not.
    """

    index_builds: int
    items: int
    trainings: int
    upgrades: list[int]


class BackfillPage(Page[BackfillView]):
    """A page."""


class EntryPage(Page[EntryView]):
    """A page."""


class ExternalUpgradePage(Page[ExternalUpgradeView]):
    """A page."""


class GalleryPage(Page[GalleryView]):
    """A page."""


class ItemPage(Page[ItemView]):
    """A page."""


class JobPage(Page[JobView]):
    """A page."""


class KeyPage(Page[KeyView]):
    """A page."""


class ModelVersionPage(Page[ModelVersionView]):
    """A page."""


class QuerySetPage(Page[QuerySetView]):
    """A page."""


class RefusedItemPage(Page[RefusedItemView]):
    """A page."""


class RejectedImagePage(Page[RejectedImageView]):
    """A page."""


class ReportLinePage(Page[ReportLine]):
    """A page."""


class TransformationPage(Page[TransformationView]):
    """A page."""


class UpgradePage(Page[UpgradeView]):
    """A page."""
