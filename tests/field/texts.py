"""Text and audio models of transformers, from small configurations."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from field.row import Draw, Row, given, noise, tokens

__all__ = ["MODELS"]

WIDTHS: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT: dict[str, Any] = WIDTHS | {"intermediate_size": 64, "vocab_size": 99, "max_position_embeddings": 32}
BERT |= {"num_labels": 5}
GROUPED: dict[str, Any] = BERT | {"num_key_value_heads": 2}
T5: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4, "vocab_size": 99}
SEQ2SEQ: dict[str, Any] = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 99}
SEQ2SEQ |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64}
SEQ2SEQ |= {"decoder_ffn_dim": 64, "max_position_embeddings": 32}
WAVES: dict[str, Any] = WIDTHS | {"intermediate_size": 64, "conv_dim": (16, 16), "conv_kernel": (8, 4)}
WAVES |= {"conv_stride": (4, 2), "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 8}
WAVES |= {"num_conv_pos_embedding_groups": 4, "vocab_size": 20, "num_labels": 5}

WORDS = tokens(99, 12)
SOUND = noise(400)


def _build(config: str, model: str, options: dict[str, Any], inputs: dict[str, Draw]) -> nn.Module:
    import transformers

    made = getattr(transformers, model)(getattr(transformers, config)(**options))
    for module in made.modules():  # weights that are parametrised made plain, as fxprune asks for
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight")
    return given(made, **inputs)


def _row(config: str, model: str, options: dict[str, Any], **inputs: Draw) -> Row:
    return partial(_build, config, model, options, inputs or {"input_ids": WORDS})


def _both(config: str, model: str, options: dict[str, Any]) -> Row:
    """An encoder that reads words, a decoder that writes some."""
    return _row(config, model, options, input_ids=WORDS, decoder_input_ids=tokens(99, 5))


MODELS: dict[str, Row] = {
    "hf_bert": _row("BertConfig", "BertForSequenceClassification", BERT),
    "hf_bert_masked": _row("BertConfig", "BertForMaskedLM", BERT),
    "hf_bert_padded": _row("BertConfig", "BertModel", BERT, input_ids=WORDS, attention_mask=tokens(1, 12)),
    "hf_distilbert": _row(
        "DistilBertConfig",
        "DistilBertForSequenceClassification",
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": 99, "num_labels": 5},
    ),
    "hf_roberta": _row("RobertaConfig", "RobertaForSequenceClassification", BERT),
    "hf_albert": _row("AlbertConfig", "AlbertForSequenceClassification", BERT | {"embedding_size": 16}),
    "hf_electra": _row("ElectraConfig", "ElectraForSequenceClassification", BERT | {"embedding_size": 16}),
    "hf_deberta_v2": _row("DebertaV2Config", "DebertaV2ForSequenceClassification", BERT),
    "hf_mpnet": _row("MPNetConfig", "MPNetForSequenceClassification", BERT),
    "hf_modernbert": _row(
        "ModernBertConfig",
        "ModernBertForSequenceClassification",
        BERT | {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 8},
    ),
    "hf_fnet": _row("FNetConfig", "FNetForSequenceClassification", BERT),
    "hf_gpt2": _row(
        "GPT2Config",
        "GPT2LMHeadModel",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 99, "n_positions": 32},
    ),
    "hf_gpt_neox": _row("GPTNeoXConfig", "GPTNeoXForCausalLM", BERT),
    "hf_opt": _row(
        "OPTConfig",
        "OPTForCausalLM",
        WIDTHS | {"ffn_dim": 64, "vocab_size": 99, "max_position_embeddings": 32, "word_embed_proj_dim": 32},
    ),
    "hf_bloom": _row(
        "BloomConfig", "BloomForCausalLM", {"hidden_size": 32, "n_layer": 2, "n_head": 4} | {"vocab_size": 99}
    ),
    "hf_llama": _row("LlamaConfig", "LlamaForCausalLM", GROUPED),
    "hf_llama_without_cache": _row("LlamaConfig", "LlamaForCausalLM", GROUPED | {"use_cache": False}),
    "hf_mistral": _row("MistralConfig", "MistralModel", GROUPED | {"sliding_window": 8}),
    "hf_qwen2": _row("Qwen2Config", "Qwen2ForCausalLM", GROUPED),
    "hf_qwen3": _row("Qwen3Config", "Qwen3ForCausalLM", GROUPED | {"head_dim": 8}),
    "hf_gemma": _row("GemmaConfig", "GemmaForCausalLM", GROUPED | {"head_dim": 8}),
    "hf_phi": _row("PhiConfig", "PhiForCausalLM", BERT),
    "hf_t5": _both("T5Config", "T5ForConditionalGeneration", T5),
    "hf_t5_encoder": _row("T5Config", "T5EncoderModel", T5),
    "hf_bart": _both("BartConfig", "BartModel", SEQ2SEQ),
    "hf_marian": _both("MarianConfig", "MarianMTModel", SEQ2SEQ | {"pad_token_id": 0}),
    # audio
    "hf_whisper": _row(
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        SEQ2SEQ
        | {"num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 16}
        | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
        input_features=noise(16, 40),
        decoder_input_ids=tokens(99, 5),
    ),
    "hf_whisper_classification": _row(
        "WhisperConfig",
        "WhisperForAudioClassification",
        SEQ2SEQ
        | {"num_mel_bins": 16, "max_source_positions": 20, "num_labels": 5}
        | {"pad_token_id": 0, "classifier_proj_size": 16},
        input_features=noise(16, 40),
    ),
    "hf_wav2vec2": _row("Wav2Vec2Config", "Wav2Vec2ForCTC", WAVES, input_values=SOUND),
    "hf_wav2vec2_stable": _row(
        "Wav2Vec2Config",
        "Wav2Vec2ForSequenceClassification",
        WAVES | {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "classifier_proj_size": 16},
        input_values=SOUND,
    ),
    "hf_hubert": _row("HubertConfig", "HubertModel", WAVES, input_values=SOUND),
    "hf_wavlm": _row(
        "WavLMConfig",
        "WavLMModel",
        WAVES | {"num_buckets": 16, "max_bucket_distance": 32},
        input_values=SOUND,
    ),
    "hf_audio_spectrogram": _row(
        "ASTConfig",
        "ASTForAudioClassification",
        WIDTHS
        | {"intermediate_size": 64, "patch_size": 8, "frequency_stride": 8, "time_stride": 8}
        | {"max_length": 32, "num_mel_bins": 16, "num_labels": 5},
        input_values=noise(32, 16),
    ),
    # series
    "hf_patch_tst": _row(
        "PatchTSTConfig",
        "PatchTSTForPrediction",
        {"num_input_channels": 3, "context_length": 32, "patch_length": 8, "patch_stride": 8, "d_model": 32}
        | {"num_attention_heads": 4, "ffn_dim": 64, "num_hidden_layers": 1, "prediction_length": 6},
        past_values=noise(32, 3),
    ),
}
