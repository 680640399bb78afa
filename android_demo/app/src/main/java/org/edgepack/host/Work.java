package org.edgepack.host;

import java.io.File;
import java.util.List;
import java.util.Map;

/** What one token asks of the machine, from headers alone: as edgepack/bench/work.py. */
final class Work {
    private static final String EMBEDDING = "token_embd.weight", HEAD = "output.weight";

    private Work() {}

    /** `adapters` are all that are attached, the factors among them. */
    static Map<String, Object> of(File model, List<File> adapters) throws Failure {
        GgufHeader header = GgufHeader.read(model);
        GgufHeader.Tensor embedding = header.tensors.get(EMBEDDING);
        GgufHeader.Tensor head = header.tensors.get(HEAD);
        boolean tied = head == null;
        if (tied) head = embedding;
        if (head == null) throw new Failure("the model has no table of tokens");
        Map<String, Object> types = Json.of(), factors = Json.of();
        long products = 0;
        for (Map.Entry<String, GgufHeader.Tensor> entry : header.tensors.entrySet()) {
            String name = entry.getKey();
            GgufHeader.Tensor tensor = entry.getValue();
            if (name.equals(EMBEDDING) && !tied) continue;
            add(types, tensor);
            boolean ends = name.equals(EMBEDDING) || name.equals(HEAD);
            if (tensor.dimensions > 1 && !ends) products += tensor.elements;
        }
        long attached = 0;
        for (File file : adapters) {
            for (GgufHeader.Tensor tensor : GgufHeader.read(file).tensors.values()) {
                add(factors, tensor);
                attached += tensor.bytes;
                products += tensor.elements;
            }
        }
        return Json.of("types", types, "factors", attached, "factor_types", factors,
                "cache", cache(header), "flops", 2 * products, "head", 2 * head.elements,
                "head_type", head.type, "attention", attention(header));
    }

    private static void add(Map<String, Object> types, GgufHeader.Tensor tensor) {
        types.put(tensor.type, (long) Json.number(types, tensor.type, 0) + tensor.bytes);
    }

    private static long wide(GgufHeader header, String key) {
        long heads = Math.max(1, header.of("attention.head_count"));
        long wide = header.of(key);
        return wide > 0 ? wide : header.of("embedding_length") / heads;
    }

    private static long attention(GgufHeader header) {
        long heads = header.of("attention.head_count");
        return 4 * header.of("block_count") * heads * wide(header, "attention.key_length");
    }

    /** Bytes of keys and values of a token, in float16. */
    private static long cache(GgufHeader header) {
        List<Double> groups = header.listOf("attention.head_count_kv");
        long blocks = header.of("block_count"), sum = 0;
        if (groups.size() > 1) for (double one : groups) sum += (long) one;
        else if (groups.isEmpty()) sum = blocks * header.of("attention.head_count");
        else sum = blocks * groups.get(0).longValue();
        return 2 * sum
                * (wide(header, "attention.key_length") + wide(header, "attention.value_length"));
    }
}
