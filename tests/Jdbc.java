import java.sql.Connection;
import java.sql.DatabaseMetaData;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.sql.Timestamp;

/** What DBeaver, Metabase and others use over JDBC: the catalog, prepared statements, rows by cursor. */
class Jdbc {
    private static int count(ResultSet rows) throws SQLException {
        int count = 0;
        while (rows.next()) {
            count++;
        }
        return count;
    }

    public static void main(String[] args) throws SQLException {
        try (Connection connection = DriverManager.getConnection("jdbc:postgresql://" + args[0] + "/argus?user=anybody")) {
            DatabaseMetaData catalog = connection.getMetaData();
            System.out.println("tables " + count(catalog.getTables(null, "public", "%", new String[] {"TABLE", "VIEW"})));
            System.out.println("columns " + count(catalog.getColumns(null, "public", "errors", "%")));
            System.out.println("schemas " + (count(catalog.getSchemas()) > 0));
            System.out.println("catalogs " + count(catalog.getCatalogs()));
            System.out.println("types " + (count(catalog.getTypeInfo()) > 0));
            System.out.println("keys " + count(catalog.getPrimaryKeys(null, "public", "errors")));
            System.out.println("imported " + count(catalog.getImportedKeys(null, "public", "errors")));
            System.out.println("indexes " + count(catalog.getIndexInfo(null, "public", "errors", false, true)));
            System.out.println("functions " + count(catalog.getFunctions(null, "public", "%")));
            String sql = "SELECT code, line, active FROM errors WHERE line >= ? AND code LIKE ? AND ts >= ? ORDER BY line";
            try (PreparedStatement statement = connection.prepareStatement(sql)) {
                statement.setLong(1, 2);
                statement.setString(2, "%");
                statement.setTimestamp(3, Timestamp.valueOf("2020-01-01 00:00:00"));
                // From the fifth execution on, the driver uses a named statement on the server.
                for (int time = 0; time < 7; time++) {
                    count(statement.executeQuery());
                }
                ResultSet rows = statement.executeQuery();
                while (rows.next()) {
                    System.out.println(rows.getString(1) + " " + rows.getLong(2) + " " + rows.getBoolean(3));
                }
            }
            connection.setAutoCommit(false);
            try (Statement statement = connection.createStatement()) {
                statement.setFetchSize(2);
                System.out.println("fetched " + count(statement.executeQuery("SELECT * FROM errors")));
            }
            connection.commit();
        }
    }
}
