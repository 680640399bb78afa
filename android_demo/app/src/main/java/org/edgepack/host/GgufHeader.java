package org.edgepack.host;

import java.io.BufferedInputStream;
import java.io.DataInputStream;
import java.io.EOFException;
import java.io.File;
import java.io.FileInputStream;
import java.io.IOException;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/** Sizes in the header of a GGUF file that the chat worker has checked: numbers of its metadata, and
 *  shape and type of each tensor. */
final class GgufHeader {
    /** ggml's types by number: name, weights of a block, bytes of a block (ggml.h). */
    private static final String TYPES = "0 f32 1 4, 1 f16 1 2, 2 q4_0 32 18, 3 q4_1 32 20, "
            + "6 q5_0 32 22, 7 q5_1 32 24, 8 q8_0 32 34, 10 q2_k 256 84, 11 q3_k 256 110, "
            + "12 q4_k 256 144, 13 q5_k 256 176, 14 q6_k 256 210, 16 iq2_xxs 256 66, "
            + "17 iq2_xs 256 74, 18 iq3_xxs 256 98, 19 iq1_s 256 50, 20 iq4_nl 32 18, "
            + "21 iq3_s 256 110, 22 iq2_s 256 82, 23 iq4_xs 256 136, 29 iq1_m 256 56, "
            + "30 bf16 1 2, 34 tq1_0 256 54, 35 tq2_0 256 66, 39 mxfp4 32 17, "
            + "40 nvfp4 64 36, 41 q1_0 128 18, 42 q2_0 64 18";
    private static final int[] WIDTHS = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    private static final int TEXT = 8, LIST = 9, FLOAT = 6, DOUBLE = 12;
    private static final long MOST = 1 << 26;

    /** A tensor. */
    static final class Tensor {
        String type;
        long elements, bytes;
        int dimensions;
    }

    final Map<String, Tensor> tensors = new HashMap<String, Tensor>();
    private final Map<String, Double> numbers = new HashMap<String, Double>();
    private final Map<String, List<Double>> lists = new HashMap<String, List<Double>>();
    private final DataInputStream in;
    String architecture = "";

    static GgufHeader read(File file) throws Failure {
        try (DataInputStream in =
                new DataInputStream(new BufferedInputStream(new FileInputStream(file), 1 << 16))) {
            return new GgufHeader(in);
        } catch (IOException damaged) {
            throw new Failure("the model's header cannot be read", "import it again");
        }
    }

    private GgufHeader(DataInputStream in) throws IOException {
        this.in = in;
        number(4);
        number(4);
        long count = number(8), keys = number(8);
        for (long i = 0; i < keys; i++) {
            String key = text();
            value(key, (int) number(4));
        }
        for (long i = 0; i < count; i++) tensor();
    }

    /** A number of the architecture, the largest of a list, or 0. */
    long of(String key) {
        List<Double> list = listOf(key);
        double most = 0;
        for (double one : list) most = Math.max(most, one);
        return (long) most;
    }

    /** A list of the architecture; of a number alone, a list of one. */
    List<Double> listOf(String key) {
        String full = architecture + "." + key;
        List<Double> found = new ArrayList<Double>();
        if (lists.containsKey(full)) found.addAll(lists.get(full));
        else if (numbers.containsKey(full)) found.add(numbers.get(full));
        return found;
    }

    /** Whether there is a number, or true or false, of this name. */
    boolean has(String key) {
        return numbers.containsKey(key);
    }

    private void value(String key, int type) throws IOException {
        if (type == TEXT) {
            String text = text();
            if (key.equals("general.architecture")) architecture = text;
        } else if (type == LIST) {
            int element = (int) number(4);
            long count = number(8);
            if (element == TEXT) {
                for (long i = 0; i < count; i++) text();
            } else if (count > 4096) {
                skip(count * WIDTHS[element]);
            } else {
                List<Double> found = new ArrayList<Double>();
                for (long i = 0; i < count; i++) found.add(scalar(element));
                lists.put(key, found);
            }
        } else {
            numbers.put(key, scalar(type));
        }
    }

    private double scalar(int type) throws IOException {
        if (type < 0 || type >= WIDTHS.length || WIDTHS[type] == 0) throw new EOFException();
        long bits = number(WIDTHS[type]);
        if (type == FLOAT) return Float.intBitsToFloat((int) bits);
        return type == DOUBLE ? Double.longBitsToDouble(bits) : bits;
    }

    private void tensor() throws IOException {
        String name = text();
        Tensor tensor = new Tensor();
        tensor.dimensions = (int) number(4);
        tensor.elements = 1;
        for (int i = 0; i < tensor.dimensions; i++) tensor.elements *= number(8);
        String start = number(4) + " ";
        number(8);
        for (String row : TYPES.split(", ")) {
            if (!row.startsWith(start)) continue;
            String[] known = row.split(" ");
            tensor.type = known[1];
            tensor.bytes = tensor.elements / Long.parseLong(known[2]) * Long.parseLong(known[3]);
        }
        if (tensor.type == null) throw new IOException("a type that is not known");
        tensors.put(name, tensor);
    }

    private long number(int width) throws IOException {
        long found = 0;
        for (int i = 0; i < width; i++) found |= (long) in.readUnsignedByte() << 8 * i;
        return found;
    }

    private String text() throws IOException {
        long length = number(8);
        if (length < 0 || length > MOST) throw new EOFException();
        byte[] bytes = new byte[(int) length];
        in.readFully(bytes);
        return new String(bytes, Worker.UTF_8);
    }

    private void skip(long count) throws IOException {
        for (long left = count; left > 0; ) {
            int done = in.skipBytes((int) Math.min(left, 1 << 20));
            if (done == 0) throw new EOFException();
            left -= done;
        }
    }
}
