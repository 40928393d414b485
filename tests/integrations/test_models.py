"""Text classifiers, and the models of transformers and timm."""

import copy

import pytest
import torch
from torch import nn

from maxl_l2l import MAXL

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")
if not transformers.utils.is_torch_available():
    pytest.skip("this release of transformers needs a newer torch", allow_module_level=True)

PSI = [2, 1, 3]
Y = torch.tensor([0, 1, 2])
IDS = torch.tensor([[5, 9, 3, 8, 2], [7, 4, 6, 0, 0], [1, 2, 11, 4, 0]])
TEXT = {"input_ids": IDS, "attention_mask": (IDS > 0).long()}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "num_labels": 3}


class Recurrent(nn.Module):
    """A bidirectional LSTM whose states are averaged over the words of each text."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(30, 8, padding_idx=0)
        self.dropout = nn.Dropout(0.2)
        self.rnn = nn.LSTM(8, 6, bidirectional=True, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, tokens):
        words = (tokens > 0).unsqueeze(2)
        states, _ = self.rnn(self.dropout(self.embedding(tokens)))
        return self.head((states * words).sum(1) / words.sum(1))


class Encoder(nn.Module):
    """A transformer with a key-padding mask, by keywords."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(30, 16, padding_idx=0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, input_ids, attention_mask):
        padding = attention_mask == 0
        states = self.encoder(self.embedding(input_ids), src_key_padding_mask=padding)
        return self.head(states.masked_fill(padding.unsqueeze(2), 0).sum(1) / attention_mask.sum(1, keepdim=True))


def bert(**options):
    config = transformers.BertConfig(vocab_size=30, max_position_embeddings=16, **SMALL | options)
    return transformers.BertForSequenceClassification(config)


def distilbert():
    sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "num_labels": 3}
    config = transformers.DistilBertConfig(vocab_size=30, max_position_embeddings=16, **sizes)
    return transformers.DistilBertForSequenceClassification(config)


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=30, n_positions=16, n_embd=16, n_layer=2, n_head=2, num_labels=3, pad_token_id=0
    )
    return transformers.GPT2ForSequenceClassification(config)


def image_transformer():
    config = transformers.ViTConfig(image_size=32, patch_size=8, hidden_dropout_prob=0.1, **SMALL)
    return transformers.ViTForImageClassification(config)


def timm_vit():
    sizes = {"img_size": 32, "depth": 2, "embed_dim": 48}
    return timm.create_model("vit_tiny_patch16_224", num_classes=3, drop_rate=0.1, **sizes)


def timm_resnet():
    return timm.create_model("resnet10t", num_classes=3, drop_rate=0.1)


IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
MODELS = {
    "lstm": (Recurrent, IDS, "head"),
    "transformer": (Encoder, TEXT, "head"),
    "bert": (bert, TEXT, "classifier"),
    "distilbert": (distilbert, TEXT, "classifier"),
    "gpt2": (gpt2, TEXT, "score"),
    "image transformer": (image_transformer, {"pixel_values": IMAGES}, "classifier"),
    "image transformer, positional": (image_transformer, IMAGES, "classifier"),
    "timm resnet10t": (timm_resnet, IMAGES, "fc"),
    "timm vit_tiny": (timm_vit, IMAGES, "head"),
}


def hypergradient(maxl, x, method):
    maxl.zero_grad()
    torch.manual_seed(1)
    maxl.hypergradient(x, Y, method=method)
    return torch.cat([p.grad.flatten() for p in maxl.generator.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", MODELS)
def test_head_is_found_and_forward_equals_unrolled(name):
    make, x, head = MODELS[name]
    maxl = MAXL(make().double().train(), PSI, entropy_weight=0.0)
    assert maxl.network.head == head
    forward, unrolled = hypergradient(maxl, x, "forward"), hypergradient(maxl, x, "unrolled")
    assert unrolled.norm() > 0
    assert (forward - unrolled).norm() <= 1e-9 * unrolled.norm()


class Packed(Recurrent):
    """Reads the words of each text alone; the lengths are an input too."""

    def forward(self, tokens, lengths):
        words = self.dropout(self.embedding(tokens))
        packed = nn.utils.rnn.pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
        _, (last, _) = self.rnn(packed)
        return self.head(torch.cat(tuple(last), dim=1))


# PyTorch has no forward-mode rule for packed sequences: the double backward pass stands in.
@pytest.mark.filterwarnings("ignore:`method` 'forward' does not work for this network:RuntimeWarning")
def test_packed_sequences_are_differentiated():
    maxl = MAXL(Packed().double(), PSI, entropy_weight=0.0)
    x = {"tokens": IDS, "lengths": (IDS > 0).sum(1)}
    forward, unrolled = hypergradient(maxl, x, "forward"), hypergradient(maxl, x, "unrolled")
    assert unrolled.norm() > 0
    assert (forward - unrolled).norm() <= 1e-9 * unrolled.norm()


@pytest.mark.parametrize("name", MODELS)
def test_generator_draws_every_parameter_anew(name):
    model = MODELS[name][0]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    body = MAXL(model, PSI).generator.body
    assert [name for name, parameter in body.named_parameters() if (parameter == 7.0).any()] == []
    assert all((parameter == 7.0).all() for parameter in model.parameters())


def test_generator_of_a_loaded_model_draws_as_the_model_did(tmp_path):
    bert().save_pretrained(tmp_path)
    model = transformers.BertForSequenceClassification.from_pretrained(tmp_path)
    body = MAXL(model, PSI).generator.body
    own = dict(model.named_parameters())
    assert [name for name, p in body.named_parameters() if p.std() > 0 and torch.equal(p, own[name])] == []
    assert body.bert.embeddings.word_embeddings.weight.std().item() == pytest.approx(
        0.02, rel=0.2
    )  # not 1, torch's own
    assert (body.bert.embeddings.word_embeddings.weight[0] == 0).all()
    assert (body.classifier.bias == 0).all()


def test_output_of_transformers_is_untouched_and_its_batch_may_be_spread():
    model = bert().eval()
    maxl = MAXL(model, PSI).eval()
    batch = transformers.BatchEncoding(TEXT)
    expected = model(**batch)
    for output in (maxl(batch), maxl(**batch), maxl(IDS, TEXT["attention_mask"])):
        assert type(output) is type(expected)
        assert torch.equal(output.logits, expected.logits)
    assert torch.equal(maxl.network(batch)[0], expected.logits)


def test_labels_among_the_keywords_do_no_harm():
    maxl = MAXL(bert(), PSI)
    assert maxl.generator.body.config.num_labels == 6
    assert maxl.module.config.num_labels == 3
    maxl.hypergradient({**TEXT, "labels": Y}, Y)


def test_transformers_without_named_outputs_gets_an_error_that_says_how():
    maxl = MAXL(bert(return_dict=False), PSI)
    # The generator, a copy, runs first.
    message = (
        r"`model` .* found a tuple of a tensor \[3, 6\]. Wrap it .*, or give a transformers model return_dict=True"
    )
    with pytest.raises(TypeError, match=message):
        maxl.loss(TEXT, Y)


def test_head_among_layers_of_its_width_must_be_named():
    model = bert(num_labels=16)
    with pytest.raises(
        ValueError, match=r"`head` must be named, as 12 layers .*'bert.pooler.dense', 'classifier'. Pass"
    ):
        MAXL(model, [1] * 16)
    assert MAXL(model, [1] * 16, head="classifier").network.auxiliary_head.in_features == 16


def test_auxiliary_logits_of_a_causal_model_are_those_of_the_last_word():
    maxl = MAXL(gpt2().eval(), PSI).eval()
    states = maxl.module.transformer(**TEXT).last_hidden_state[torch.arange(3), torch.tensor([4, 2, 3])]
    assert torch.equal(maxl.network(TEXT)[1], maxl.network.auxiliary_head(states))


def test_step_trains_a_text_classifier():
    maxl = MAXL(bert().train(), PSI)
    optimizer = torch.optim.AdamW(maxl.network.parameters(), lr=1e-2)
    generator_optimizer = torch.optim.SGD(maxl.generator.parameters(), lr=1e-2)
    before = copy.deepcopy(maxl.generator.state_dict())
    losses = [float(maxl.step(TEXT, Y, optimizer, generator_optimizer).primary_loss) for _ in range(15)]
    assert losses[-1] < 0.5 * losses[0]
    assert any(not torch.equal(value, before[name]) for name, value in maxl.generator.state_dict().items())
