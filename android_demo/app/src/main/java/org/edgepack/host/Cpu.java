package org.edgepack.host;

import java.io.BufferedReader;
import java.io.File;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.Charset;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashSet;
import java.util.Set;

/** Which of a program's variants this processor runs. */
public final class Cpu {
    /** As in edgepack/native/variants.py, those for newer processors first: what a file's name has
     *  more, what the processor must have in the words of /proc/cpuinfo. */
    static final String[][] VARIANTS = {
        {"-dotprod", "asimddp", "fphp", "asimdhp"},
        {"-avx2", "avx2", "fma", "f16c", "bmi2"},
        {""},
    };

    private Cpu() {}

    /** The file of a program (`chat`, `tune`, `bench`) in the folder of native libraries. */
    public static File program(File folder, String name, Set<String> features) throws Failure {
        boolean there = false;
        for (String[] variant : VARIANTS) {
            File file = new File(folder, "libedgepack-" + name + variant[0] + ".so");
            there |= file.isFile();
            Set<String> needs =
                    new HashSet<String>(Arrays.asList(variant).subList(1, variant.length));
            if (file.isFile() && features.containsAll(needs)) return file;
        }
        throw new Failure(there
                ? "this phone's processor is too old for this program: it lacks products of 8-bit numbers"
                : "this app was built without the program " + name);
    }

    /** The features of /proc/cpuinfo that every core has. */
    public static Set<String> features(File cpuinfo) {
        Set<String> all = null;
        try (BufferedReader lines = new BufferedReader(new InputStreamReader(
                new FileInputStream(cpuinfo), Charset.forName("UTF-8")))) {
            for (String line = lines.readLine(); line != null; line = lines.readLine()) {
                int colon = line.indexOf(':');
                String key = colon < 0 ? "" : line.substring(0, colon).trim();
                if (!key.equals("Features") && !key.equals("flags")) continue;
                Set<String> one = new HashSet<String>(
                        Arrays.asList(line.substring(colon + 1).trim().split("\\s+")));
                if (all == null) all = one;
                else all.retainAll(one);
            }
        } catch (IOException unreadable) {
            return Collections.emptySet();
        }
        return all == null ? Collections.<String>emptySet() : all;
    }
}
