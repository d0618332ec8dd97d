"""What callers may send and what they get: strict, bounded types, checked straight from the raw bytes.

Identifiers are strings of 1-128 printable characters; an integer is taken as its decimal string, for
logs often have integer keys. Nothing is coerced otherwise: no booleans for integers, no fractions, no
unknown fields, no NaN. The answer models document the API; answers are serialised from plain dicts.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    RootModel,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from index_builder.delta import MAX_FEATURES, MAX_SIMILAR, MAX_WEIGHT

MAX_ID_LENGTH = 128
MAX_TOP_K = 1000
MAX_SEQUENCE = 1000
MAX_EXCLUDED = 10_000
MAX_REQUESTS = 256
MAX_EVENTS = 1000
MAX_TIMESTAMP = 4_102_444_800
"""1 January 2100 in seconds; milliseconds of any plausible date are larger and refused."""
MAX_CHANGED = 1000
MAX_SEED = 2**53 - 1
"""The largest integer that every JSON parser keeps exact."""


def _identifier(value: object) -> str:
    text = str(value) if type(value) is int else value
    if not isinstance(text, str):
        raise PydanticCustomError("identifier", "must be a string, or an integer taken as its decimal string")
    if not 1 <= len(text) <= MAX_ID_LENGTH:
        raise PydanticCustomError("identifier", f"must have 1 to {MAX_ID_LENGTH} characters, has {len(text)}")
    if not text.isprintable():
        raise PydanticCustomError("identifier", "must consist of printable characters")
    return text


Identifier = Annotated[
    str,
    PlainValidator(_identifier),
    WithJsonSchema(
        {
            "anyOf": [
                {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": MAX_ID_LENGTH,
                    "pattern": "^[^\\x00-\\x1f\\x7f]+$",
                },
                {"type": "integer"},
            ],
            "description": "1-128 printable characters; an integer is taken as its decimal string.",
        }
    ),
]
Timestamp = Annotated[
    int, Field(ge=0, le=MAX_TIMESTAMP, description="Unix seconds (not milliseconds).", examples=[1700000000])
]
Weight = Annotated[float, Field(gt=0, le=MAX_WEIGHT, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Behaviour(_Strict):
    """One thing the user did."""

    item_id: Identifier
    timestamp: Timestamp | None = Field(None, description="Left out when the time is not known.")


class RecallRequest(_Strict):
    """Ask for one user's candidates."""

    user_id: Identifier
    top_k: int = Field(100, ge=1, le=MAX_TOP_K, description="How many candidates.")
    exclude_seen: bool = Field(True, description="Leave out the items of the user's sequence.")
    exclude_item_ids: list[Identifier] = Field(
        default=(),  # type: ignore[arg-type]  # a list would be copied for every request
        max_length=MAX_EXCLUDED,
        description="Items that must not be recalled.",
    )
    sequence: list[Behaviour] | None = Field(
        None, max_length=MAX_SEQUENCE, description="Oldest first; used in place of the stored one."
    )
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Equal seeds give equal answers.")


class Event(_Strict):
    """One behaviour to append to a user's stored sequence."""

    user_id: Identifier
    item_id: Identifier
    timestamp: Timestamp | None = Field(None, description="The server's clock when left out.")


class NewItemRequest(_Strict):
    """An item that no model was trained on, and what is known of it."""

    item_id: Identifier
    similar_item_ids: dict[Identifier, Weight] | list[Identifier] = Field(
        default={}, max_length=MAX_SIMILAR, description="Consumed in the same sessions, perhaps with counts."
    )
    features: list[Identifier] = Field(
        default=[], max_length=MAX_FEATURES, description="Tokens as in the catalogue, such as genre=Drama."
    )


class AddItemsRequest(_Strict):
    """Items to recall from now on."""

    items: list[NewItemRequest] = Field(min_length=1, max_length=MAX_CHANGED)


class ItemIdsRequest(_Strict):
    """Items to delete, or to bring back."""

    item_ids: list[Identifier] = Field(min_length=1, max_length=MAX_CHANGED)


class RollbackRequest(_Strict):
    """Which bundle to go back to."""

    to: Identifier | None = Field(None, description="An earlier bundle; the previous one when left out.")


class ConsoleRequest(_Strict):
    """Whose answer to explain, and with which other bundle to compare it."""

    user_id: Identifier
    top_k: int = Field(20, ge=1, le=200, description="How many candidates.")
    exclude_seen: bool = Field(True, description="Leave out the items of the user's sequence.")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Equal seeds give equal answers.")
    compare: Identifier | None = Field(None, description="Another bundle of the store.")

    def question(self) -> RecallRequest:
        """The request whose answer is explained."""
        return RecallRequest(
            user_id=self.user_id,
            top_k=self.top_k,
            exclude_seen=self.exclude_seen,
            seed=self.seed,
            sequence=None,
        )


class Refused(BaseModel):
    """A member of a batch that did not validate; its place in the batch is kept."""

    error: Any = Field(exclude=True)


def _refuse_alone(value: object, validate: ValidatorFunctionWrapHandler) -> RecallRequest | Refused:
    try:
        return validate(value)
    except ValidationError as error:
        return Refused(error=error)


class RecallBatchRequest(_Strict):
    """Ask for many users' candidates at once; each is answered or refused on its own."""

    requests: list[Annotated[RecallRequest, WrapValidator(_refuse_alone)]] = Field(
        min_length=1, max_length=MAX_REQUESTS
    )


class EventsRequest(RootModel[Event | Annotated[list[Event], Field(min_length=1, max_length=MAX_EVENTS)]]):
    """One event, or a list of them."""


RECALL_REQUEST: TypeAdapter[RecallRequest] = TypeAdapter(RecallRequest)
RECALL_BATCH_REQUEST: TypeAdapter[RecallBatchRequest] = TypeAdapter(RecallBatchRequest)
ADD_ITEMS: TypeAdapter[AddItemsRequest] = TypeAdapter(AddItemsRequest)
ITEM_IDS: TypeAdapter[ItemIdsRequest] = TypeAdapter(ItemIdsRequest)
CONSOLE_REQUEST: TypeAdapter[ConsoleRequest] = TypeAdapter(ConsoleRequest)
ROLLBACK: TypeAdapter[RollbackRequest] = TypeAdapter(RollbackRequest)
EVENT: TypeAdapter[Event] = TypeAdapter(Event)
EVENTS: TypeAdapter[list[Event]] = TypeAdapter(
    Annotated[list[Event], Field(min_length=1, max_length=MAX_EVENTS)]
)


# What comes back.


class Candidate(BaseModel):
    """A retrieved item; a larger score is better and comes first."""

    item_id: str
    score: float


class RecallAnswer(BaseModel):
    """The candidates of one user."""

    request_id: str
    user_id: str
    bundle: str = Field(description="The bundle that answered: model and index always from the same one.")
    route: str = Field(description="What answered: the model's name, or `popular`.")
    degraded: bool = Field(description="True for less than the model's best, through no doing of the caller.")
    reason: str | None = Field(
        None, description="Why the fallback answered, or the model with fewer steps; only there when so."
    )
    candidates: list[Candidate]
    shortfall: str | None = Field(None, description="Why there are fewer than top_k; only there when so.")
    experiment: str | None = Field(None, description="Only there while an experiment runs.")
    arm: str | None = Field(None, description="Which arm of the experiment answered.")


class FieldProblem(BaseModel):
    """One field that is wrong."""

    field: str
    value: str = Field(description="What was sent, shortened.")
    problem: str
    remedy: str


class Problem(BaseModel):
    """An error (RFC 9457, application/problem+json)."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str | None = None
    bundle: str | None = Field(None, description="The bundle that was to answer; there once that is known.")
    errors: list[FieldProblem] = []


class BatchMember(BaseModel):
    """The answer or the refusal of one member of a batch, in the order of the requests."""

    status: int
    answer: RecallAnswer | None = None
    problem: Problem | None = None


class RecallBatchAnswer(BaseModel):
    """As many members as requests, in their order."""

    request_id: str
    responses: list[BatchMember]


class EventsAnswer(BaseModel):
    """Stored: a crash after this answer loses none of them."""

    request_id: str
    accepted: int


class Health(BaseModel):
    """Liveness or readiness."""

    status: Literal["ok", "unavailable"]
    reason: str | None = None


class ArmInfo(BaseModel):
    """One arm of the running experiment."""

    name: str
    bundle: str
    follows_current: bool = Field(description="Whether it moves with the store's pointer.")
    share: float = Field(description="Percent of the users; of a shadow, of the control's requests.")
    shadow: bool = Field(description="Asked as well, and never answering.")
    model: str
    tower_engine: str


class ExperimentInfo(BaseModel):
    """The running experiment; its first arm is the control."""

    name: str
    arms: list[ArmInfo]


class DeltaInfo(BaseModel):
    """What is recalled, and what is not, beside the bundle."""

    version: str = Field(description="Names the store's new and deleted items that are in use, or `none`.")
    new_items: int = Field(description="New items that can be recalled.")
    unplaced_items: int = Field(description="New items that the bundle has nothing similar to.")
    deleted_items: int


class ModelInfo(BaseModel):
    """What is being served."""

    bundle: str
    model: str
    model_settings: dict[str, Any]
    metric: str = Field(description="How embeddings are compared.")
    device: str
    tower_engine: str
    index: dict[str, Any] = Field(description="Kind and measured overlap with exact search.")
    num_items: int = Field(description="Items of the bundle.")
    delta: DeltaInfo
    metrics: dict[str, Any] = Field(description="Offline metrics of the model when it was trained.")
    experiment: ExperimentInfo | None = Field(None, description="Only there while one runs.")
